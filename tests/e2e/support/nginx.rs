//! An nginx on a free port of the loopback, for comparison. `scripts/rfc9111.sh` installs it.

use super::gateway::send_signal;
use super::redis::free_addr;
use super::runtime::new_mark;
use super::wait::{SOON, within};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A running server. Ended, and its files removed, when dropped.
pub struct Nginx {
    addr: SocketAddr,
    dir: PathBuf,
    child: Child,
}

const TERMINATE: i32 = 15;

impl Nginx {
    /// `http` is what stands in that block; `@LISTEN@` in it becomes the address, `@DIR@` a folder of its own.
    #[track_caller]
    pub fn start(http: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("gateway-e2e-nginx-{}", new_mark()));
        fs::create_dir_all(&dir).expect("a folder can be made");
        let addr = free_addr();
        let conf = format!(
            "daemon off; worker_processes 1; pid @DIR@/pid; user root;
             events {{ worker_connections 4096; }}
             http {{
                 access_log off;
                 client_body_temp_path @DIR@/body; proxy_temp_path @DIR@/proxy; fastcgi_temp_path @DIR@/fastcgi;
                 uwsgi_temp_path @DIR@/uwsgi; scgi_temp_path @DIR@/scgi;
                 {http}
             }}"
        );
        let conf = conf
            .replace("@DIR@", &dir.display().to_string())
            .replace("@LISTEN@", &addr.to_string());
        let file = dir.join("nginx.conf");
        fs::write(&file, conf).expect("the configuration can be written");
        let child = Command::new("nginx")
            .env("PATH", "/usr/sbin:/usr/bin:/bin")
            .arg("-p")
            .arg(&dir)
            .arg("-e")
            .arg(dir.join("error.log"))
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx can be run: scripts/rfc9111.sh installs it");
        let nginx = Self { addr, dir, child };
        let came = within(SOON, || TcpStream::connect(addr).ok());
        assert!(came.is_some(), "nginx does not listen: {}", nginx.errors());
        nginx
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// As `nginx -v` says it.
    pub fn version() -> String {
        let output = Command::new("nginx")
            .env("PATH", "/usr/sbin:/usr/bin:/bin")
            .arg("-v")
            .output()
            .expect("nginx can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        let version = said.trim().rsplit(' ').next().unwrap_or_default();
        version.to_owned()
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.dir.join("error.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers end with it when it is asked to, and not when it is killed.
        send_signal(self.child.id(), TERMINATE);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

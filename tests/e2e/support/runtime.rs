//! What a gateway that is replaced by a new process needs: a runtime directory of its own, a program that can be broken,
//! and somebody who asks for the upgrade as an operator does.

use super::gateway::{Exit, Gateway, GatewayBuilder, gateway_program};
use super::wait::wait_until;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Stands in the environment of a test's gateway and of all that it starts.
pub(super) const MARK: &str = "E2E_GATEWAY";

/// A runtime directory, removed at the end.
pub struct Runtime(PathBuf);

impl Runtime {
    pub fn new() -> Self {
        let this = Self(std::env::temp_dir().join(format!("gateway-e2e-{}", new_mark())));
        this.make();
        this.mend();
        this
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    fn program(&self) -> PathBuf {
        self.0.join("api-gateway")
    }

    /// The gateway under test, here.
    pub fn of(&self, gateway: GatewayBuilder) -> GatewayBuilder {
        gateway
            .env("RUNTIME_DIRECTORY", self.run().display())
            .program(self.program())
    }

    pub fn control(&self) -> PathBuf {
        self.run().join("control.sock")
    }

    /// Makes the directory for the control socket.
    pub fn make(&self) {
        fs::create_dir_all(self.run()).expect("a folder can be made");
        fs::set_permissions(self.run(), fs::Permissions::from_mode(0o700)).expect("it is ours");
    }

    /// Takes it away.
    pub fn lose(&self) {
        fs::remove_dir_all(self.run()).expect("it was there");
    }

    /// Puts a small file system in its place that has no room for one more file.
    pub fn fill(&self) -> FullDisk {
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "nr_inodes=1,mode=0700", "tmpfs"])
            .arg(self.run())
            .status();
        assert!(
            mount.expect("mount can be run").success(),
            "this needs the right to mount"
        );
        FullDisk(self.run())
    }

    /// Puts this in the place of the program.
    pub fn break_program(&self, content: &str) {
        let _ = fs::remove_file(self.program());
        fs::write(self.program(), content).expect("the program can be written");
        fs::set_permissions(self.program(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    }

    pub fn lose_program(&self) {
        fs::remove_file(self.program()).expect("it was there");
    }

    pub fn mend(&self) {
        let _ = fs::remove_file(self.program());
        symlink(gateway_program(), self.program()).expect("a link can be made");
    }

    /// `api-gateway upgrade`, as the operator runs it.
    pub fn upgrade(&self) -> Exit {
        self.ask("upgrade")
    }

    pub fn ask(&self, what: &str) -> Exit {
        exit(
            self.begin(what)
                .wait_with_output()
                .expect("it can be waited for"),
        )
    }

    pub fn begin(&self, what: &str) -> Child {
        let mut command = self.command(what);
        command.spawn().expect("the program can be run")
    }

    pub fn command(&self, what: &str) -> Command {
        let mut command = Command::new(gateway_program());
        command
            .arg(what)
            .env_clear()
            .env("RUNTIME_DIRECTORY", self.run())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // A test may have removed it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Gone when dropped.
pub struct FullDisk(PathBuf);

impl Drop for FullDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(
            unmounted.is_ok_and(|status| status.success()),
            "{} stays mounted",
            self.0.display()
        );
    }
}

impl Gateway {
    /// The processes that took its place, in order.
    pub fn successors(&self) -> Vec<u32> {
        let lines = self.log_lines();
        let serves = |line: &&Value| line["msg"] == "upgrade: the new process serves";
        let pid = |line: &Value| line["pid"].as_str()?.parse().ok();
        lines.iter().filter(serves).filter_map(pid).collect()
    }

    /// Waits until so many processes took its place. The last of them.
    #[track_caller]
    pub fn successor(&self, count: usize) -> u32 {
        wait_until("a new process serves", || self.successors().len() >= count);
        self.successors()[count - 1]
    }

    /// Waits for the reason why an upgrade failed.
    #[track_caller]
    pub fn wait_failed_upgrade(&self, reason: &str) {
        self.wait_log(|line| {
            line["msg"] == "upgrade failed, this process serves on"
                && line["reason"]
                    .as_str()
                    .is_some_and(|why| why.contains(reason))
        });
    }
}

/// Whether the process has ended. Who is nobody's child any more may not have been waited for yet.
pub fn is_gone(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().next());
    matches!(state, None | Some("Z" | "X"))
}

pub(super) fn new_mark() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Ends every process that has this in its environment: one of the test's own.
pub(super) fn end_all(mark: &str) {
    let wanted = format!("{MARK}={mark}");
    let all = fs::read_dir("/proc").expect("processes can be listed");
    for process in all.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        if environment
            .split(|b| *b == 0)
            .any(|entry| entry == wanted.as_bytes())
            && !is_gone(pid)
        {
            super::gateway::send_signal(pid, 9);
        }
    }
}

fn exit(output: Output) -> Exit {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Exit {
        code: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

//! Where clients come in: an address and a port, or a path in the file system.

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use socket2::{Domain, SockAddr, Socket, Type};

/// What a listener is bound to; as text `0.0.0.0:3000` or `unix:/run/api-gateway/front.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Inet(SocketAddr),
    Unix(PathBuf),
}

const UNIX: &str = "unix:";

/// Bytes of a path that a Unix-domain socket can have (unix(7)).
const MOST_PATH: usize = 107;

/// Owner and group connect: the proxy in front runs as one of them.
const MODE: u32 = 0o660;

impl Address {
    /// Binds a socket that does not listen yet: no client can meet it, and another one at the port shows.
    ///
    /// Gives the address that it came to, where any port was wanted.
    pub fn bind(&self, reuse_port: bool) -> io::Result<(Socket, Self)> {
        match self {
            Self::Inet(wanted) => {
                let socket = bind_inet(*wanted, reuse_port)?;
                let address = socket.local_addr()?.as_socket().unwrap_or(*wanted);
                Ok((socket, Self::Inet(address)))
            }
            Self::Unix(path) => {
                clear(path)?;
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                socket.set_nonblocking(true)?;
                socket.bind(&SockAddr::unix(path)?)?;
                // Nobody can connect in between: it does not listen yet.
                fs::set_permissions(path, Permissions::from_mode(MODE))?;
                Ok((socket, self.clone()))
            }
        }
    }
}

pub fn bind_inet(wanted: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(wanted), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&wanted.into())?;
    Ok(socket)
}

/// Takes away the socket that a process has left behind; one that somebody listens on, and what is no socket, stays.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::other("there is a file that is no socket"));
        }
        Ok(_) => {}
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full queue must not keep us waiting.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(e) if e.kind() != ErrorKind::WouldBlock => Err(e),
        _ => Err(ErrorKind::AddrInUse.into()),
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix(UNIX) {
            return match path.len() {
                _ if !path.starts_with('/') => Err(format!(
                    "`{text}` needs an absolute path, as in unix:/run/api-gateway/front.sock"
                )),
                ..=MOST_PATH => Ok(Self::Unix(path.into())),
                _ => Err(format!(
                    "the path of a socket has at most {MOST_PATH} bytes"
                )),
            };
        }
        text.parse().map(Self::Inet).map_err(|_| {
            format!(
                "`{text}` is not an address such as 0.0.0.0:3443, [::]:3443 or unix:/run/api-gateway/front.sock"
            )
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_as_it_is_written() {
        for text in ["0.0.0.0:3000", "[::1]:0", "unix:/run/front.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let long = format!("unix:/{}", "x".repeat(MOST_PATH));
        for bad in [
            "",
            "3000",
            "localhost:3000",
            "unix:",
            "unix:front.sock",
            &long,
        ] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_socket_that_was_left_behind_is_replaced_and_nothing_else_is() {
        let directory = std::env::temp_dir().join(format!("listen-address-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("front.sock");
        let address = Address::Unix(path.clone());
        let (first, _) = address.bind(false).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        first.listen(1).unwrap();
        let taken = address.bind(false).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        drop(first);
        drop(address.bind(false).expect("nobody listens on it any more"));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(address.bind(false).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_dir_all(&directory).unwrap();
    }
}

//! Listeners as YAML writes them.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::address::Address;
use crate::config::{self, Problems};

/// How clients are spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Http,
    Https,
    /// HTTP, and every answer sends the client to https.
    Redirect,
}

/// A further listener.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// `0.0.0.0:3443`, or `unix:/run/api-gateway/front.sock`.
    pub address: String,
    #[serde(default)]
    pub protocol: Protocol,
    /// Every connection begins with a PROXY header, which is believed from `trusted_proxies` only.
    #[serde(default)]
    pub proxy_protocol: bool,
}

/// `server.tcp`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TcpConfig {
    /// Connections that wait to be accepted (listen(2)).
    pub backlog: u32,
    /// Idle time before keep-alive probes; 0s: none.
    pub keepalive: config::Duration,
    /// Length of the Fast Open queue; 0: off.
    pub fast_open: u32,
    pub reuse_port: bool,
}

/// `server.connections`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionsConfig {
    /// Open at once.
    pub max: u32,
    /// Open at once of one client's address; 0: no limit.
    pub per_address: u32,
}

/// Options of the sockets that listen.
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    pub backlog: i32,
    pub keepalive: Option<Duration>,
    pub fast_open: usize,
    pub reuse_port: bool,
}

/// A listener that is to be bound.
#[derive(Debug)]
pub struct Wanted {
    /// What the log calls it; `None`: its address.
    pub name: Option<&'static str>,
    pub address: Address,
    pub protocol: Protocol,
    pub proxy_protocol: bool,
}

/// Everything that `server` says of listeners.
pub struct ListenConfig {
    pub main: SocketAddr,
    pub protocol: Protocol,
    pub listeners: Vec<ListenerConfig>,
    pub tcp: TcpConfig,
    pub connections: ConnectionsConfig,
    /// `ops.listen`
    pub private: Option<SocketAddr>,
    /// There are certificates.
    pub has_tls: bool,
    /// Somebody is trusted with a PROXY header.
    pub has_proxies: bool,
}

/// Where clients may come in, and how many.
pub struct Listeners {
    pub wanted: Vec<Wanted>,
    pub tcp: Tcp,
    pub max: u32,
    pub per_address: u32,
}

/// A process that takes over is given all sockets at one stroke, the main and the private one among them.
const MOST_LISTENERS: usize = 126;

/// The kernel's longest (tcp(7), TCP_KEEPIDLE).
const MOST_KEEPALIVE: Duration = Duration::from_secs(32_767);

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            backlog: 4096,
            keepalive: config::Duration::secs(60),
            fast_open: 0,
            reuse_port: false,
        }
    }
}

impl Default for ConnectionsConfig {
    fn default() -> Self {
        Self {
            max: 20_000,
            per_address: 1000,
        }
    }
}

impl Default for Tcp {
    fn default() -> Self {
        TcpConfig::default().compile(&mut Problems::default())
    }
}

impl ListenConfig {
    pub fn compile(self, problems: &mut Problems) -> Listeners {
        let Self {
            main,
            protocol,
            listeners,
            tcp,
            connections: ConnectionsConfig { max, per_address },
            private,
            has_tls,
            has_proxies,
        } = self;
        let mut wanted = vec![Wanted {
            name: Some("main"),
            address: Address::Inet(main),
            protocol,
            proxy_protocol: false,
        }];
        check_tls("server", protocol, has_tls, problems);
        if listeners.len() > MOST_LISTENERS {
            let fault = format!("must be at most {MOST_LISTENERS}: an upgrade passes on no more");
            problems.add("server.listeners", fault);
        }
        for (i, listener) in listeners.into_iter().enumerate() {
            let place = format!("server.listeners[{i}]");
            check_tls(&place, listener.protocol, has_tls, problems);
            let Some(listener) = listener.compile(&place, has_proxies, problems) else {
                continue;
            };
            if wanted.iter().any(|other| is_taken(other, &listener)) {
                let fault = format!("`{}` is another listener's already", listener.address);
                problems.add(format!("{place}.address"), fault);
            }
            wanted.push(listener);
        }
        let private = private.filter(|private| private.port() != 0);
        if let Some(taken) = private.map(Address::Inet)
            && wanted.iter().any(|other| other.address == taken)
        {
            let fault = format!("`{taken}` is a listener for clients already");
            problems.add("ops.listen", fault);
        }
        if max == 0 {
            problems.add("server.connections.max", "must be at least 1");
        }
        Listeners {
            wanted,
            tcp: tcp.compile(problems),
            max,
            per_address,
        }
    }
}

impl ListenerConfig {
    fn compile(self, place: &str, has_proxies: bool, problems: &mut Problems) -> Option<Wanted> {
        let Self {
            address,
            protocol,
            proxy_protocol,
        } = self;
        let address = address
            .parse()
            .inspect_err(|fault: &String| problems.add(format!("{place}.address"), fault))
            .ok()?;
        // Whoever may open a Unix-domain socket is trusted by its mode.
        if proxy_protocol && !has_proxies && matches!(address, Address::Inet(_)) {
            problems.add(
                format!("{place}.proxy_protocol"),
                "nobody is believed: name the proxies in `server.trusted_proxies`",
            );
        }
        Some(Wanted {
            name: None,
            address,
            protocol,
            proxy_protocol,
        })
    }
}

impl TcpConfig {
    fn compile(self, problems: &mut Problems) -> Tcp {
        let Self {
            backlog,
            keepalive,
            fast_open,
            reuse_port,
        } = self;
        if !(1..=65_535).contains(&backlog) {
            problems.add("server.tcp.backlog", "must be from 1 to 65535");
        }
        if fast_open > 65_535 {
            problems.add("server.tcp.fast_open", "must be at most 65535");
        }
        let keepalive = Some(keepalive.0).filter(|idle| !idle.is_zero());
        let possible = Duration::from_secs(1)..=MOST_KEEPALIVE;
        if keepalive.is_some_and(|idle| !possible.contains(&idle)) {
            problems.add(
                "server.tcp.keepalive",
                format!(
                    "must be from 1s to {}s, or 0s for none",
                    MOST_KEEPALIVE.as_secs()
                ),
            );
        }
        Tcp {
            backlog: backlog.min(65_535) as i32,
            keepalive,
            fast_open: fast_open as usize,
            reuse_port,
        }
    }
}

fn check_tls(place: &str, protocol: Protocol, has_tls: bool, problems: &mut Problems) {
    if protocol == Protocol::Https && !has_tls {
        problems.add(
            format!("{place}.protocol"),
            "`https` needs a certificate: name one in `tls.certificates`",
        );
    }
}

/// Whether both would be bound to the same; port 0 is another one each time.
fn is_taken(one: &Wanted, other: &Wanted) -> bool {
    one.address == other.address
        && !matches!(&other.address, Address::Inet(address) if address.port() == 0)
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Redirect => "redirect",
        }
    }
}

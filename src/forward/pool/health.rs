//! Which instances answer: active checks, in a rhythm of our own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::HOST;
use parking_lot::Mutex;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::l4::socket::SocketAddr as Address;
use pingora_load_balancing::Backend;
use pingora_load_balancing::health_check::HealthCheck;
use serde::{Deserialize, Serialize};

use super::Pool;
use super::members::{Members, text_of};
use super::names::Instance;
use crate::config::{self, Problems};
use crate::forward::verdict;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// Off: every instance counts as healthy.
    pub enabled: bool,
    pub path: String,
    /// Between two checks, give or take a tenth; while an instance is not healthy, a tenth of it.
    pub interval: config::Duration,
    /// For one check's connection, and for its answer.
    pub timeout: config::Duration,
    /// Checks in a row that make an instance healthy again.
    pub healthy: usize,
    /// Failed checks in a row that set an instance aside.
    pub unhealthy: usize,
}

/// One `GET` that must be answered with a 2xx.
pub struct Check {
    service: Box<str>,
    /// But for its `Host`.
    request: RequestHeader,
    timeout: Duration,
    healthy: usize,
    unhealthy: usize,
    /// Shared by all services: each one of its own would read the system's certificates again.
    connector: Arc<Connector>,
    members: Arc<Members>,
    /// Why instances failed their last check, for the log: told when they are set aside.
    faults: Mutex<HashMap<Address, String>>,
}

/// More than so many are not kept: an instance may be gone before its fault is told.
const MOST_FAULTS: usize = 1000;

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            path: "/health".into(),
            interval: config::Duration::secs(30),
            timeout: config::Duration::secs(2),
            healthy: 1,
            unhealthy: 2,
        }
    }
}

pub fn check_health(place: &str, health: &HealthConfig, problems: &mut Problems) {
    let HealthConfig {
        enabled: _,
        path,
        interval,
        timeout,
        healthy,
        unhealthy,
    } = health;
    if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
        problems.add(format!("{place}.path"), "must be a path");
    }
    if *interval < config::Duration::millis(100) {
        problems.add(format!("{place}.interval"), "must be at least 100ms");
    }
    if timeout.0.is_zero() {
        problems.add(format!("{place}.timeout"), "must be longer than nothing");
    }
    if *healthy == 0 || *unhealthy == 0 {
        problems.add(place, "healthy and unhealthy must be at least 1");
    }
}

// === impl Check ===

impl Check {
    pub fn new(
        service: &str,
        health: &HealthConfig,
        connector: &Arc<Connector>,
        members: &Arc<Members>,
    ) -> Option<Self> {
        // The path was checked before.
        let mut request = RequestHeader::build("GET", health.path.as_bytes(), None).ok()?;
        request
            .insert_header(
                "User-Agent",
                concat!("api-gateway/", env!("CARGO_PKG_VERSION"), " (health)"),
            )
            .ok()?;
        Some(Self {
            service: service.into(),
            request,
            timeout: health.timeout.0,
            healthy: health.healthy,
            unhealthy: health.unhealthy,
            connector: connector.clone(),
            members: members.clone(),
            faults: Mutex::default(),
        })
    }

    async fn ask(&self, target: &Backend) -> pingora::Result<()> {
        let Some(instance) = target.ext.get::<Arc<Instance>>() else {
            return Ok(());
        };
        let mut peer = instance.peer(&target.addr);
        peer.options.connection_timeout = Some(self.timeout);
        peer.options.total_connection_timeout = Some(self.timeout);
        // Neither kept nor shared: each check shows that a new connection can be made. One of HTTP/2 that has room for more
        // streams would be found again although nobody gives it back.
        peer.options.max_h2_streams = 1;
        let (mut session, _) = self.connector.get_http_session(&peer).await?;
        session.set_read_timeout(Some(self.timeout));
        session.set_write_timeout(Some(self.timeout));
        let mut request = Box::new(self.request.clone());
        request.insert_header(HOST, instance.authority.clone())?;
        session.write_request_header(request).await?;
        session.finish_request_body().await?;
        session.read_response_header().await?;
        match session.response_header() {
            Some(head) if head.status.is_success() => Ok(()),
            _ => pingora::Error::e_explain(
                pingora::ErrorType::Custom("unhealthy"),
                "the check is not 2xx",
            ),
        }
    }

    fn remember(&self, address: &Address, fault: String) {
        let mut faults = self.faults.lock();
        if faults.len() >= MOST_FAULTS {
            faults.clear();
        }
        faults.insert(address.clone(), fault);
    }
}

#[async_trait]
impl HealthCheck for Check {
    async fn check(&self, target: &Backend) -> pingora::Result<()> {
        let outcome = self.ask(target).await;
        outcome.inspect_err(|e| self.remember(&target.addr, verdict::cause(e)))
    }

    async fn health_status_change(&self, target: &Backend, healthy: bool) {
        let Self { service, .. } = self;
        self.members.set_health(&target.addr, healthy);
        let instance = text_of(&target.addr);
        match healthy {
            true => log::info!("service {service}: instance {instance} is healthy again"),
            false => {
                let fault = self.faults.lock().remove(&target.addr).unwrap_or_default();
                log::warn!("service {service}: instance {instance} is not healthy: {fault}");
            }
        }
    }

    fn health_threshold(&self, success: bool) -> usize {
        if success {
            self.healthy
        } else {
            self.unhealthy
        }
    }
}

/// Keeps a pool's names and health up to date, for as long as it is in force.
pub async fn keep_up(pool: Arc<Pool>) {
    let checks = async {
        loop {
            tokio::time::sleep(pool.pause()).await;
            pool.look().await;
        }
    };
    let judgements = async {
        loop {
            pool.judge().await;
        }
    };
    tokio::join!(checks, judgements);
}

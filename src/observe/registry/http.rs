//! `http_*`: what is counted of every request, by method and route.

use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::OnceCell;
use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use super::{counters, gauges, histograms};
use crate::route::{METHODS, MethodIndex};

/// Seconds, as documented.
const DURATIONS: [f64; 7] = [0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0];

/// Bytes, as documented.
const SIZES: [f64; 5] = [100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0];

/// `http_*`, for all routes.
pub struct HttpMetrics {
    duration: HistogramVec,
    total: IntCounterVec,
    in_progress: IntGaugeVec,
    request_size: HistogramVec,
    response_size: HistogramVec,
}

/// One route's metrics; a method's are made when it is first used.
pub struct RouteMetrics {
    template: Box<str>,
    http: Arc<HttpMetrics>,
    by_method: [OnceCell<Box<MethodMetrics>>; METHODS.len() + 1],
}

/// One route's metrics for one method, with labels resolved.
pub struct MethodMetrics {
    method: &'static str,
    template: Box<str>,
    http: Arc<HttpMetrics>,
    in_progress: IntGauge,
    request_size: Histogram,
    response_size: Histogram,
    by_status: [OnceCell<StatusMetrics>; STATUSES],
}

struct StatusMetrics {
    status: u16,
    total: IntCounter,
    duration: Histogram,
}

/// A request under way: the gauge falls when this is dropped.
pub struct InProgress(IntGauge);

/// Statuses of one route and method that have a place of their own; further ones are looked up each time.
const STATUSES: usize = 16;

// === impl HttpMetrics ===

impl HttpMetrics {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            duration: histograms(
                registry,
                "http_request_duration_seconds",
                "Time from the request's head to the end of its answer, in seconds",
                &["method", "route", "status_code"],
                &DURATIONS,
            )?,
            total: counters(
                registry,
                "http_requests_total",
                "Requests answered",
                &["method", "route", "status_code"],
            )?,
            in_progress: gauges(
                registry,
                "http_requests_in_progress",
                "Requests under way",
                &["method", "route"],
            )?,
            request_size: histograms(
                registry,
                "http_request_size_bytes",
                "Request bodies, in bytes",
                &["method", "route"],
                &SIZES,
            )?,
            response_size: histograms(
                registry,
                "http_response_size_bytes",
                "Response bodies, in bytes",
                &["method", "route"],
                &SIZES,
            )?,
        })
    }

    pub fn route(self: &Arc<Self>, template: &str) -> RouteMetrics {
        RouteMetrics {
            template: template.into(),
            http: self.clone(),
            by_method: [const { OnceCell::new() }; METHODS.len() + 1],
        }
    }
}

// === impl RouteMetrics ===

impl RouteMetrics {
    /// `None`: a method that no route knows.
    pub fn method(&self, method: Option<MethodIndex>) -> &MethodMetrics {
        let place = method.map_or(METHODS.len(), |index| index.0);
        self.by_method[place].get_or_init(|| {
            let name = METHODS.get(place).map_or("OTHER", |m| {
                // The constants of `http` are 'static, their `as_str` is not.
                match m.as_str() {
                    "GET" => "GET",
                    "HEAD" => "HEAD",
                    "POST" => "POST",
                    "PUT" => "PUT",
                    "PATCH" => "PATCH",
                    "DELETE" => "DELETE",
                    _ => "OPTIONS",
                }
            });
            let labels = [name, &*self.template];
            Box::new(MethodMetrics {
                method: name,
                template: self.template.clone(),
                in_progress: self.http.in_progress.with_label_values(&labels),
                request_size: self.http.request_size.with_label_values(&labels),
                response_size: self.http.response_size.with_label_values(&labels),
                http: self.http.clone(),
                by_status: [const { OnceCell::new() }; STATUSES],
            })
        })
    }
}

// === impl MethodMetrics ===

impl MethodMetrics {
    pub fn begin(&self) -> InProgress {
        self.in_progress.inc();
        InProgress(self.in_progress.clone())
    }

    pub fn end(&self, status: u16, elapsed: Duration, request_bytes: usize, response_bytes: usize) {
        self.request_size.observe(request_bytes as f64);
        self.response_size.observe(response_bytes as f64);
        for place in &self.by_status {
            let metrics = place.get_or_init(|| self.status(status));
            if metrics.status == status {
                return metrics.observe(elapsed);
            }
        }
        self.status(status).observe(elapsed);
    }

    fn status(&self, status: u16) -> StatusMetrics {
        let text = status.to_string();
        let labels = [self.method, &*self.template, &*text];
        StatusMetrics {
            status,
            total: self.http.total.with_label_values(&labels),
            duration: self.http.duration.with_label_values(&labels),
        }
    }
}

impl StatusMetrics {
    fn observe(&self, elapsed: Duration) {
        self.total.inc();
        self.duration.observe(elapsed.as_secs_f64());
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.dec();
    }
}

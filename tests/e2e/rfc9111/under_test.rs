//! The caches that the table is run against: the gateway, and nginx for comparison.

use crate::support::nginx::Nginx;
use crate::support::prelude::*;

pub enum Cache {
    Gateway(Box<Gateway>),
    Nginx(Nginx),
}

impl Cache {
    #[track_caller]
    pub fn gateway(origin: &Upstream) -> Self {
        let more = |path: &str, auth: &str, cache: &str| {
            format!("{{ path: '/{path}/*', service: s, auth: {auth}, cache: {{ {cache} }} }}")
        };
        let gateway = Conf::of(&[origin.url()])
            .top("cache", "{ memory: 64MiB }")
            .service("retry", "{ max_retries: 0 }")
            .route("cache", "{}")
            .and_route(&more("token", "token", ""))
            .and_route(&more("class", "public", "class: medium"))
            .and_route(&more("swr", "public", "stale_while_revalidate: 60s"))
            .and_route(&more("sie", "public", "stale_if_error: 60s"))
            .start();
        Self::Gateway(Box::new(gateway))
    }

    /// With all that its documentation offers for the purpose.
    #[track_caller]
    pub fn nginx(origin: &Upstream) -> Self {
        let location = |path: &str, more: &str| {
            format!(
                "location /{path}/ {{ proxy_pass http://{}; {more} }}\n",
                origin.addr()
            )
        };
        let locations = [
            location("s", ""),
            location("token", ""),
            location(
                "class",
                "proxy_cache_valid 200 203 204 300 301 308 404 405 410 414 501 5m;",
            ),
            location("swr", "proxy_cache_use_stale updating;"),
            location(
                "sie",
                "proxy_cache_use_stale error timeout http_500 http_502 http_503 http_504;",
            ),
        ];
        Self::Nginx(Nginx::start(&format!(
            "proxy_cache_path @DIR@/cache keys_zone=cache:1m;
             server {{
                 listen @LISTEN@;
                 proxy_cache cache;
                 proxy_cache_key $host$request_uri;
                 proxy_cache_revalidate on;
                 proxy_cache_background_update on;
                 proxy_cache_lock on;
                 proxy_force_ranges on;
                 if_modified_since before;
                 proxy_http_version 1.1;
                 proxy_set_header Connection '';
                 {}
             }}",
            locations.concat()
        )))
    }

    pub fn addr(&self) -> SocketAddr {
        match self {
            Self::Gateway(gateway) => gateway.addr(),
            Self::Nginx(nginx) => nginx.addr(),
        }
    }

    /// Whether it sends `Cache-Status`.
    pub fn tells(&self) -> bool {
        matches!(self, Self::Gateway(_))
    }
}

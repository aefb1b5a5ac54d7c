//! What must hold for every input: one property a parser, for `fuzz/` to search a counterexample to, and for
//! `cargo test` to try on the corpus that is checked in. Built for these two alone.
//!
//! A new parser: a property here, its line in [`TARGETS`], two lines in `fuzz/fuzz_targets/NAME.rs`, and a few inputs in
//! `fuzz/corpus/NAME/`. A property panics where it does not hold.

mod cached;
mod callers;
mod configuration;
mod http;
mod streams;
mod venues;
mod writes;

pub use cached::{cache_control, conditional};
pub use callers::{api_key, refresh_body, token};
pub use configuration::{compiled, config, environment};
pub use http::{chunks, head, path};
pub use streams::{proxy_protocol, websocket};
pub use venues::{form, json, segment};
pub use writes::{batch, document, idempotency_key, nominated};

pub type Property = fn(&[u8]);

/// All of them by name.
pub const TARGETS: [(&str, Property); 19] = [
    ("api_key", api_key),
    ("batch", batch),
    ("cache_control", cache_control),
    ("chunks", chunks),
    ("conditional", conditional),
    ("config", config),
    ("document", document),
    ("environment", environment),
    ("form", form),
    ("head", head),
    ("idempotency_key", idempotency_key),
    ("json", json),
    ("nominated", nominated),
    ("path", path),
    ("proxy_protocol", proxy_protocol),
    ("refresh_body", refresh_body),
    ("segment", segment),
    ("token", token),
    ("websocket", websocket),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn names_in(folder: &str) -> Vec<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}"));
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.unwrap().file_name().into_string().unwrap()
        };
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn every_property_holds_for_its_corpus() {
        for (name, property) in TARGETS {
            let corpus = format!("fuzz/corpus/{name}");
            let files = names_in(&corpus);
            assert!(files.len() >= 5, "{corpus} has {} inputs", files.len());
            for file in files {
                let path = format!("{}/{corpus}/{file}", env!("CARGO_MANIFEST_DIR"));
                let input = std::fs::read(&path).unwrap();
                let held = std::panic::catch_unwind(|| property(&input));
                assert!(held.is_ok(), "{corpus}/{file} breaks `{name}`");
            }
        }
    }

    #[test]
    fn every_property_has_its_fuzz_target() {
        let expected: Vec<_> = TARGETS
            .iter()
            .map(|(name, _)| format!("{name}.rs"))
            .collect();
        assert_eq!(names_in("fuzz/fuzz_targets"), expected);
    }
}

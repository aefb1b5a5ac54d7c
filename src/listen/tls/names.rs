//! Which certificates are for a name (RFC 9525, section 6.3).

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

/// Names, each with the places of its certificates.
#[derive(Default)]
pub struct Names {
    exact: HashMap<Box<str>, Vec<usize>, ahash::RandomState>,
    /// By what follows `*.`, which stands for one label.
    wildcards: HashMap<Box<str>, Vec<usize>, ahash::RandomState>,
}

impl Names {
    pub fn add(&mut self, name: &str, place: usize) {
        let name = name.to_ascii_lowercase();
        let places = match name.strip_prefix("*.") {
            Some(parent) => self.wildcards.entry(parent.into()),
            None => self.exact.entry(name.into()),
        };
        places.or_default().push(place);
    }

    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcards.is_empty()
    }

    /// A name of its own goes before a wildcard.
    pub fn find(&self, name: &str) -> &[usize] {
        let name = name.strip_suffix('.').unwrap_or(name);
        let name = match name.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        };
        let of_parent = || {
            let (label, parent) = name.split_once('.')?;
            self.wildcards.get(parent).filter(|_| !label.is_empty())
        };
        self.exact
            .get(&*name)
            .or_else(of_parent)
            .map_or(&[], Vec::as_slice)
    }
}

/// An address as certificates hold it, in the spelling of a host.
pub fn address(bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(address.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_name_is_found() {
        let mut names = Names::default();
        let of = [
            "a.example.com",
            "*.example.com",
            "A.Example.com",
            "10.0.0.1",
            "::1",
        ];
        for (place, name) in of.into_iter().enumerate() {
            names.add(name, place);
        }
        for (name, places) in [
            ("a.example.com", &[0, 2][..]),
            ("A.EXAMPLE.COM.", &[0, 2]),
            ("b.example.com", &[1]),
            ("a.b.example.com", &[]),
            (".example.com", &[]),
            ("example.com", &[]),
            ("*.example.com", &[1]),
            ("10.0.0.1", &[3]),
            ("::1", &[4]),
            ("", &[]),
            (".", &[]),
        ] {
            assert_eq!(names.find(name), places, "{name}");
        }
    }
}

//! Whose venues? Every venue that a request names must be one of its caller's (decision 18).

/// The venues that somebody may name without further ado.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Venues {
    /// All of its tenant's.
    all: bool,
    these: Box<[Box<str>]>,
}

// === impl Venues ===

impl Venues {
    pub fn new(these: impl IntoIterator<Item = String>) -> Self {
        Self {
            all: false,
            these: these.into_iter().map(Into::into).collect(),
        }
    }

    /// `*` among them stands for all of the tenant's.
    pub fn with_wildcard(these: impl IntoIterator<Item = String>) -> Self {
        let mut venues = Self::new(these);
        venues.all = venues.these.iter().any(|venue| **venue == *"*");
        venues
    }

    pub fn contains(&self, venue: &str) -> bool {
        self.all || self.these.iter().any(|known| **known == *venue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_all_venues_only_where_it_may_be() {
        let star = || ["*".to_owned()];
        assert!(Venues::with_wildcard(star()).contains("v1"));
        assert!(!Venues::new(star()).contains("v1"));
        assert!(!Venues::default().contains(""));
    }
}

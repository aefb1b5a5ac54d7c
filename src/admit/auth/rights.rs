//! What a credential says that its holder may do, as a digest: whoever keeps what was made for a caller keeps it for the
//! same rights alone. Roles that no configuration names count as well, because backends read the token, too.

use sha2::{Digest, Sha256};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights([u8; 16]);

impl Rights {
    pub fn of<'a>(
        role: Option<&str>,
        permissions: &[String],
        venues: impl Iterator<Item = &'a str>,
    ) -> Self {
        let mut digest = Sha256::new();
        let mut put = |kind: u8, text: &str| {
            digest.update([kind]);
            digest.update((text.len() as u64).to_be_bytes());
            digest.update(text);
        };
        role.into_iter().for_each(|role| put(b'r', role));
        permissions.iter().for_each(|text| put(b'p', text));
        venues.for_each(|venue| put(b'v', venue));
        let digest = digest.finalize();
        let mut first = [0; 16];
        first.copy_from_slice(&digest[..16]);
        Self(first)
    }

    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_somebody_may_do_otherwise_is_another_digest() {
        let of = |role, permissions: &[&str], venues: &[&str]| {
            let permissions: Vec<String> = permissions.iter().map(|p| (*p).to_owned()).collect();
            Rights::of(role, &permissions, venues.iter().copied())
        };
        let all = [
            of(None, &[], &[]),
            of(Some("a"), &[], &[]),
            of(None, &["a"], &[]),
            of(None, &[], &["a"]),
            of(None, &["a", "b"], &[]),
            of(None, &["ab"], &[]),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|other| other != one), "{i}");
        }
        assert_eq!(of(Some("a"), &["b"], &["c"]), of(Some("a"), &["b"], &["c"]));
    }
}

//! May this caller do it? Roles and permissions (decision 17).
//!
//! `{resource}:{action}`, with `*` and `{resource}:*` as wildcards. A permission that ends in `-own` counts where the
//! route says how ownership shows: by a path parameter that must be the caller's id, or because the service itself
//! answers about the caller only.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::auth::{Caller, MissingPermission, Source};
use crate::config::Problems;

/// A role's permissions, as YAML lists them.
#[derive(Debug, Deserialize, Serialize)]
#[serde(transparent)]
pub struct RoleConfig(pub Vec<String>);

/// All roles by name.
#[derive(Debug, Default)]
pub struct Roles {
    ids: HashMap<String, RoleId>,
    grants: Vec<Permissions>,
}

/// A role that the configuration names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleId(u16);

/// What somebody may do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    all: bool,
    /// `tickets` of `tickets:*`.
    resources: Vec<Box<str>>,
    exact: Vec<Box<str>>,
}

/// How far a permission reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grant {
    None,
    /// Only on what is the caller's own.
    Own,
    Full,
}

/// What a route needs, with the answer for every role worked out beforehand.
#[derive(Debug)]
pub struct Required {
    permission: Box<str>,
    by_role: Vec<Grant>,
}

/// How a route shows whose data it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Nothing shows it: `-own` does not suffice.
    #[default]
    Unknown,
    /// The service answers about the caller only.
    Service,
    /// The path's parameter at this place is the owner's id.
    PathParameter(usize),
}

// === impl Roles ===

impl Roles {
    pub fn compile(roles: BTreeMap<String, RoleConfig>, problems: &mut Problems) -> Self {
        let mut compiled = Self::default();
        for (name, RoleConfig(permissions)) in roles {
            for (i, permission) in permissions.iter().enumerate() {
                if !is_permission(permission) {
                    problems.add(
                        format!("roles.{name}[{i}]"),
                        format!("`{permission}` is not `resource:action`"),
                    );
                }
            }
            let id = RoleId(u16::try_from(compiled.grants.len()).unwrap_or(u16::MAX));
            compiled.grants.push(Permissions::new(permissions));
            compiled.ids.insert(name, id);
        }
        compiled
    }

    /// Whether a role that was found among these is the same one among those.
    pub fn has_same_ids(&self, other: &Self) -> bool {
        self.ids == other.ids
    }

    pub fn id(&self, name: &str) -> Option<RoleId> {
        self.ids.get(name).copied()
    }

    /// Compiles what a route needs.
    pub fn require(&self, permission: &str) -> Required {
        let by_role = self
            .grants
            .iter()
            .map(|role| role.grant(permission))
            .collect();
        Required {
            permission: permission.into(),
            by_role,
        }
    }
}

// === impl Permissions ===

impl Permissions {
    pub fn new(list: impl IntoIterator<Item = String>) -> Self {
        let mut permissions = Self::default();
        for entry in list {
            match entry.strip_suffix(":*") {
                _ if entry == "*" => permissions.all = true,
                Some(resource) => permissions.resources.push(resource.into()),
                None => permissions.exact.push(entry.into()),
            }
        }
        permissions
    }

    /// How far this list grants `permission`.
    pub fn grant(&self, permission: &str) -> Grant {
        let resource = permission.split(':').next().unwrap_or_default();
        if self.all
            || self.resources.iter().any(|r| **r == *resource)
            || self.exact.iter().any(|p| **p == *permission)
        {
            return Grant::Full;
        }
        let owns = |p: &str| p.strip_suffix("-own") == Some(permission);
        if self.exact.iter().any(|p| owns(p)) {
            Grant::Own
        } else {
            Grant::None
        }
    }
}

// === impl Owner ===

impl Owner {
    /// The value of the parameter that names it, among those of a path.
    pub fn parameter<'a>(&self, parameters: &'a [Box<str>]) -> Option<&'a str> {
        match self {
            Self::PathParameter(place) => parameters.get(*place).map(|value| &**value),
            Self::Unknown | Self::Service => None,
        }
    }

    /// Whether the path says that it is this caller's own. An API key is nobody.
    pub fn is(&self, caller: &Caller, parameter: Option<&str>) -> bool {
        let is_named = matches!(self, Self::PathParameter(_));
        let is_user = caller.source != Source::ApiKey;
        is_named && is_user && parameter.is_some_and(|text| reads_as(text, &caller.id))
    }
}

// === impl Required ===

impl Required {
    pub fn permission(&self) -> &str {
        &self.permission
    }

    /// How far a role alone grants it.
    pub fn by_role(&self, RoleId(id): RoleId) -> Grant {
        let grant = self.by_role.get(usize::from(id)).copied();
        grant.unwrap_or(Grant::None)
    }

    /// How far it is granted to somebody, by its role or by its own list.
    pub fn grant_to(&self, caller: &Caller) -> Grant {
        let by_role = caller.role.map(|role| self.by_role(role));
        match by_role.unwrap_or(Grant::None) {
            Grant::Full => Grant::Full,
            grant => grant.max(caller.permissions.grant(&self.permission)),
        }
    }

    /// # Errors
    /// When neither the caller's role nor its own list grants it, or only for what is the caller's own and this is
    /// somebody else's. `owner_parameter` is the value of the route's owner parameter.
    pub fn check(
        &self,
        caller: &Caller,
        owner: &Owner,
        owner_parameter: Option<&str>,
    ) -> Result<(), MissingPermission> {
        let allowed = match self.grant_to(caller) {
            Grant::Full => true,
            Grant::None => false,
            // An API key is nobody: nothing is its own, and its id is no user's.
            Grant::Own if caller.source == Source::ApiKey => false,
            Grant::Own => match owner {
                Owner::Unknown => false,
                Owner::Service => true,
                Owner::PathParameter(_) => owner_parameter.is_some_and(|p| reads_as(p, &caller.id)),
            },
        };
        if allowed {
            Ok(())
        } else {
            Err(MissingPermission)
        }
    }
}

/// Whether a path segment in normal form stands for this id: what is reserved may be percent-encoded.
fn reads_as(segment: &str, id: &str) -> bool {
    let mut bytes = segment.bytes();
    let mut next = || match bytes.next()? {
        b'%' => {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            Some((digit()? * 16 + digit()?) as u8)
        }
        plain => Some(plain),
    };
    id.bytes().all(|b| next() == Some(b)) && next().is_none()
}

/// `*`, `resource:*` or `resource:action`, in lower case letters, digits, `-` and `_`.
pub fn is_permission(text: &str) -> bool {
    let is_word = |w: &str| {
        !w.is_empty()
            && w.bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    match text.split_once(':') {
        None => text == "*",
        Some((resource, action)) => is_word(resource) && (action == "*" || is_word(action)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(list: &[&str], permission: &str) -> Grant {
        Permissions::new(list.iter().map(|p| (*p).to_owned())).grant(permission)
    }

    #[test]
    fn wildcards_reach_as_far_as_they_are_written() {
        assert_eq!(grant(&["*"], "tickets:view"), Grant::Full);
        assert_eq!(grant(&["tickets:*"], "tickets:view"), Grant::Full);
        assert_eq!(grant(&["tickets:*"], "tickets-archive:view"), Grant::None);
        assert_eq!(grant(&["tickets:view"], "tickets:view"), Grant::Full);
        assert_eq!(grant(&["tickets:view"], "tickets:view-all"), Grant::None);
        assert_eq!(grant(&[], "tickets:view"), Grant::None);
    }

    #[test]
    fn own_is_less_than_full() {
        assert_eq!(grant(&["tickets:view-own"], "tickets:view"), Grant::Own);
        assert_eq!(
            grant(&["tickets:view-own", "tickets:view"], "tickets:view"),
            Grant::Full
        );
        assert_eq!(grant(&["tickets:view-own"], "tickets:cancel"), Grant::None);
    }

    #[test]
    fn permissions_have_one_form() {
        for good in ["*", "tickets:*", "tickets:view-own", "api_keys:read2"] {
            assert!(is_permission(good), "{good}");
        }
        for bad in [
            "",
            "tickets",
            "tickets:",
            ":view",
            "Tickets:view",
            "tickets:view:own",
            "tickets:**",
        ] {
            assert!(!is_permission(bad), "{bad}");
        }
    }
}

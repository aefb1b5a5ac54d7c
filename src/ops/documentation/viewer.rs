//! Who looks at the documentation, and what of it they may see: the operations that they may call.

use std::sync::Arc;

use crate::admit::auth::{AuthRule, Caller, Source};
use crate::admit::permissions::{Grant, Owner, Required, RoleId};
use crate::route::{MethodIndex, Route};

/// Who looks.
pub enum Viewer {
    /// An address in `ops.allow`, without credentials.
    Operator,
    /// An address in `ops.allow` that wants to see what a role does, from elsewhere.
    Role(RoleId),
    /// Whoever was identified, and the holder of the key beside the token.
    Caller {
        caller: Arc<Caller>,
        beside: Option<Arc<Caller>>,
    },
    Nobody,
}

/// Somebody whose rights count.
enum Holder<'a> {
    Caller(&'a Caller),
    Role(RoleId),
}

// === impl Viewer ===

impl Viewer {
    /// `admin`: the role that may do everything.
    pub fn may_call(&self, route: &Route, method: MethodIndex, admin: Option<RoleId>) -> bool {
        let may = |holder: Holder<'_>| holder.may_call(route, method, admin);
        match (self, route.auth) {
            (_, AuthRule::Public) | (Self::Operator, _) => true,
            (Self::Nobody, _) => false,
            (Self::Role(role), _) => may(Holder::Role(*role)),
            // Both must be allowed it (decision 19).
            (Self::Caller { caller, beside }, AuthRule::TokenOrKey) => {
                let mut holders = std::iter::once(caller).chain(beside);
                holders.all(|holder| may(Holder::Caller(holder)))
            }
            // A key is not looked at here.
            (Self::Caller { caller, .. }, AuthRule::Token | AuthRule::Ops) => {
                caller.source == Source::Jwt && may(Holder::Caller(caller))
            }
        }
    }
}

// === impl Holder ===

impl Holder<'_> {
    fn may_call(&self, route: &Route, method: MethodIndex, admin: Option<RoleId>) -> bool {
        let is_admin = admin.is_some() && self.role() == admin;
        if route.auth == AuthRule::Ops {
            return is_admin;
        }
        // An API key is nobody: nothing is its own.
        let may_own = self.is_user() && route.owner != Owner::Unknown;
        if route.owner_only && !is_admin && !may_own {
            return false;
        }
        match route
            .permission(method)
            .map(|required| self.grant(required))
        {
            None | Some(Grant::Full) => true,
            Some(Grant::Own) => may_own,
            Some(Grant::None) => false,
        }
    }

    fn role(&self) -> Option<RoleId> {
        match self {
            Self::Caller(caller) => caller.role,
            Self::Role(role) => Some(*role),
        }
    }

    fn is_user(&self) -> bool {
        match self {
            Self::Caller(caller) => caller.source != Source::ApiKey,
            Self::Role(_) => true,
        }
    }

    fn grant(&self, required: &Required) -> Grant {
        match self {
            Self::Caller(caller) => required.grant_to(caller),
            Self::Role(role) => required.by_role(*role),
        }
    }
}

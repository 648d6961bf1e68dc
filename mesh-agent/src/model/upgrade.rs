//! Which other protocols a connection may change to.
//!
//! Spec: `HttpConnectionManager.UpgradeConfig`, `RouteAction.UpgradeConfig`.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

/// The name of CONNECT among them.
pub const CONNECT: &[u8] = b"CONNECT";

/// By the name that requests give in `upgrade`, whose case means nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Upgrades(pub BTreeMap<Arc<str>, bool>);

impl Upgrades {
    /// Whether a connection manager lets a request of this route change to `protocol`:
    /// what the route says of it comes first.
    pub fn allow(&self, route: Option<&Self>, protocol: &[u8]) -> bool {
        let told = route.and_then(|route| route.get(protocol)).or_else(|| self.get(protocol));
        told.unwrap_or(false)
    }

    fn get(&self, protocol: &[u8]) -> Option<bool> {
        let mut all = self.0.iter();
        let own = all.find(|(name, _)| name.as_bytes().eq_ignore_ascii_case(protocol));
        own.map(|(_, allowed)| *allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_says_otherwise_than_its_manager() {
        let of = |all: &[(&str, bool)]| {
            Upgrades(all.iter().map(|(name, on)| ((*name).into(), *on)).collect())
        };
        let manager = of(&[("websocket", true), ("spdy", false)]);
        assert!(manager.allow(None, b"WebSocket"));
        assert!(!manager.allow(None, b"spdy"));
        assert!(!manager.allow(None, b"websocket, spdy"));
        assert!(manager.allow(Some(&of(&[("SPDY", true)])), b"spdy"));
        assert!(!manager.allow(Some(&of(&[("websocket", false)])), b"websocket"));
        assert!(of(&[]).allow(Some(&of(&[("other", true)])), b"other"));
    }
}

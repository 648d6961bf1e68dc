//! What a request is counted under, for filters that limit rates.
//!
//! Spec: `envoy.config.route.v3.RateLimit`.

use std::sync::Arc;

use serde::Serialize;

use super::route::HeaderMatcher;

/// One descriptor that requests get, if all of its actions have something to say.
#[derive(Debug, Clone, Serialize)]
pub struct RateLimit {
    /// Of which filters it is for.
    pub stage: u32,
    /// By which the runtime may switch it off; local limits pass over those that have one.
    pub disable_key: String,
    /// In order; never empty.
    pub actions: Vec<RateLimitAction>,
    /// How much a request counts; `None`: as who counts has it, which is one for local limits.
    pub hits: Option<u64>,
    /// Whether responses tell what is left; `None`: as the filter has it.
    pub x_ratelimit: Option<bool>,
}

/// Spec: `envoy.config.route.v3.RateLimit.Action`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RateLimitAction {
    DestinationCluster,
    RemoteAddress,
    /// Prefix lengths of the two families.
    MaskedRemoteAddress {
        v4: u8,
        v6: u8,
    },
    RequestHeader {
        name: String,
        key: String,
        /// A request without it is counted all the same, under the other entries.
        skip_if_absent: bool,
    },
    GenericKey {
        key: String,
        value: String,
    },
    HeaderValueMatch {
        key: String,
        value: String,
        /// Whether the headers have to match, or must not.
        expect: bool,
        headers: Vec<HeaderMatcher>,
    },
}

/// Those of a route, and of its virtual host.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RouteRateLimits {
    pub own: Vec<RateLimit>,
    /// Whether the virtual host's count too, whatever the filter says.
    pub include_host: bool,
    pub host: Arc<Vec<RateLimit>>,
}

/// When those of the virtual host count.
///
/// Spec: `envoy.extensions.common.ratelimit.v3.VhRateLimitsOptions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HostRateLimits {
    /// Where the route has none.
    #[default]
    Override,
    Include,
    Ignore,
}

impl RouteRateLimits {
    /// Those that count for filters of that stage.
    pub fn of(&self, stage: u32, host: HostRateLimits) -> impl Iterator<Item = &RateLimit> {
        let with_host = self.include_host
            || match host {
                HostRateLimits::Override => self.own.is_empty(),
                HostRateLimits::Include => true,
                HostRateLimits::Ignore => false,
            };
        let host = self.host.iter().filter(move |_| with_host);
        self.own.iter().chain(host).filter(move |limit| limit.stage == stage)
    }
}

//! What a request is counted under by filters that limit rates.
//!
//! Spec: `envoy.config.route.v3.RateLimit.Action`.

use std::net::IpAddr;

use http::request::Parts;
use ipnet::IpNet;

use crate::{
    model::{
        cluster::ClusterName,
        rate_limit::{RateLimit, RateLimitAction},
    },
    policy::matcher::{first_value, header_matches},
};

/// One descriptor of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Keys and values, in order.
    pub(super) entries: Vec<(String, String)>,
    /// `None`: one, or as the server has it.
    pub(super) hits: Option<u64>,
    /// Whether the response tells what is left; `None`: as the filter has it.
    pub(super) x_ratelimit: Option<bool>,
}

/// What actions look at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted<'a> {
    pub(super) head: &'a Parts,
    pub(super) client: IpAddr,
    /// Where the request goes, where that is known.
    pub(super) cluster: Option<&'a ClusterName>,
}

impl Counted<'_> {
    /// The descriptor, if every action has an entry for it, or leaves it out on purpose.
    pub(super) fn under(&self, limit: &RateLimit) -> Option<Descriptor> {
        let mut entries = Vec::with_capacity(limit.actions.len());
        for action in &limit.actions {
            entries.extend(self.entry(action)?);
        }
        let RateLimit { hits, x_ratelimit, .. } = *limit;
        (!entries.is_empty()).then_some(Descriptor { entries, hits, x_ratelimit })
    }

    /// That of a limit of a route or of a virtual host. As Envoy: it counts as without
    /// `hits_addend`.
    pub(super) fn under_routes(&self, limit: &RateLimit) -> Option<Descriptor> {
        Some(Descriptor { hits: None, ..self.under(limit)? })
    }

    /// The outer `None`: the request is not counted; the inner one: not under this.
    fn entry(&self, action: &RateLimitAction) -> Option<Option<(String, String)>> {
        let entry = |key: &str, value: String| Some(Some((key.to_owned(), value)));
        match action {
            RateLimitAction::DestinationCluster => {
                entry("destination_cluster", self.cluster?.0.to_string())
            }
            RateLimitAction::RemoteAddress => entry("remote_address", self.client.to_string()),
            RateLimitAction::MaskedRemoteAddress { v4, v6 } => {
                let length = if self.client.is_ipv4() { *v4 } else { *v6 };
                let network = IpNet::new(self.client, length).ok()?.trunc();
                entry("masked_remote_address", network.to_string())
            }
            RateLimitAction::RequestHeader { name, key, skip_if_absent } => {
                match first_value(name, self.head) {
                    Some(value) => entry(key, String::from_utf8_lossy(value).into_owned()),
                    None => skip_if_absent.then_some(None),
                }
            }
            RateLimitAction::GenericKey { key, value } => entry(key, value.clone()),
            RateLimitAction::HeaderValueMatch { key, value, expect, headers } => {
                let matches = headers.iter().all(|header| header_matches(header, self.head));
                if matches == *expect { entry(key, value.clone()) } else { None }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn limit(actions: Vec<RateLimitAction>) -> RateLimit {
        RateLimit { stage: 0, disable_key: String::new(), actions, hits: None, x_ratelimit: None }
    }

    fn header(skip_if_absent: bool) -> RateLimitAction {
        RateLimitAction::RequestHeader { name: "x-a".into(), key: "a".into(), skip_if_absent }
    }

    #[test]
    fn what_a_request_counts_is_not_for_routes_to_say() {
        let (head, ()) = Request::new(()).into_parts();
        let counted = Counted { head: &head, client: [10, 0, 0, 1].into(), cluster: None };
        let six = RateLimit { hits: Some(6), ..limit(vec![RateLimitAction::RemoteAddress]) };
        assert_eq!(counted.under(&six).unwrap().hits, Some(6));
        assert_eq!(counted.under_routes(&six).unwrap().hits, None);
    }

    #[test]
    fn a_descriptor_has_an_entry_of_each_action_or_is_none() {
        let head = Request::builder().header("x-a", "1").header("x-a", "2").body(()).unwrap();
        let (with, ()) = head.into_parts();
        let (without, ()) = Request::new(()).into_parts();
        let under = |head, client: &str, actions| {
            let counted = Counted { head, client: client.parse().unwrap(), cluster: None };
            counted.under(&limit(actions)).map(|descriptor| descriptor.entries)
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let masked = RateLimitAction::MaskedRemoteAddress { v4: 16, v6: 64 };
        let both = vec![header(false), masked.clone()];
        assert_eq!(
            under(&with, "10.1.2.3", both.clone()),
            Some(vec![pair("a", "1"), pair("masked_remote_address", "10.1.0.0/16")])
        );
        assert_eq!(under(&without, "10.1.2.3", both), None);
        assert_eq!(
            under(&without, "2001:db8::1", vec![header(true), masked]),
            Some(vec![pair("masked_remote_address", "2001:db8::/64")])
        );
        assert_eq!(under(&without, "10.1.2.3", vec![header(true)]), None);
        assert_eq!(under(&with, "10.1.2.3", vec![RateLimitAction::DestinationCluster]), None);
    }
}

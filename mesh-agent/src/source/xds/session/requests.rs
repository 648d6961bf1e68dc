//! What is said to the server, and in which order.

use std::{collections::BTreeSet, sync::Arc};

use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc::Status,
};

use super::{Now, Request, Session, Variant, table::Table};
use crate::source::xds::{ResourceType, scopes::ALL};

/// `google.rpc.Code.INVALID_ARGUMENT`, as Envoy says.
const INVALID_ARGUMENT: i32 = 3;

/// Make before break: clusters, and what they need, come before what leads to them.
/// Runtime values come first, since everything else may be read by them.
const ORDER: [ResourceType; 9] = [
    ResourceType::Runtime,
    ResourceType::Cluster,
    ResourceType::Secret,
    ResourceType::Endpoints,
    ResourceType::Listener,
    ResourceType::ExtensionConfig,
    ResourceType::Scope,
    ResourceType::Routes,
    ResourceType::VirtualHost,
];

impl Session {
    /// The next request, if there is one to send now on that stream.
    pub(in crate::source::xds) fn poll_request(
        &mut self,
        stream: usize,
        now: Now,
    ) -> Option<Request> {
        let speaks = |kind: &ResourceType| {
            let table = self.table(*kind);
            table.stream == Some(stream) && table.must_speak(now.at)
        };
        let kind = ORDER.into_iter().find(speaks)?;
        let state = self.streams.get_mut(stream).filter(|state| state.connected)?;
        let variant = state.variant;
        let introduced = std::mem::replace(&mut state.introduced, true);
        let node = (!introduced).then(|| self.node.clone());
        let table = self.table_mut(kind);
        Some(match variant {
            Variant::Sotw => Request::Sotw(DiscoveryRequest { node, ..table.sotw() }),
            Variant::Delta => Request::Delta(DeltaDiscoveryRequest { node, ..table.delta(now) }),
        })
    }
}

fn texts<'a>(names: impl IntoIterator<Item = &'a Arc<str>>) -> Vec<String> {
    names.into_iter().map(ToString::to_string).collect()
}

fn error_detail(error: Option<String>) -> Option<Status> {
    error.map(|message| Status { code: INVALID_ARGUMENT, message, details: Vec::new() })
}

impl Table {
    /// Answers the last response, if that is still to be done, and says what is wanted:
    /// in this variant every request does both.
    fn sotw(&mut self) -> DiscoveryRequest {
        self.opened = true;
        let passed_over = std::mem::take(&mut self.passed_over);
        if std::mem::take(&mut self.reworded) {
            let mut names = self.next_names();
            if passed_over {
                // The server may have said it before it heard that we want it no more, and
                // then has never heard that: the answer to it says so, the next request
                // asks anew.
                names.retain(|name| self.subscribed.contains(name));
            }
            self.reworded = names != self.wanted;
            self.subscribed = names;
        }
        let reply = self.replies.pop_front();
        DiscoveryRequest {
            version_info: self.version.clone(),
            resource_names: texts(self.subscribed.iter().filter(|name| &***name != ALL)),
            type_url: self.kind.type_url().to_owned(),
            response_nonce: self.nonce.clone(),
            error_detail: error_detail(reply.and_then(|reply| reply.error)),
            ..DiscoveryRequest::default()
        }
    }

    fn delta(&mut self, now: Now) -> DeltaDiscoveryRequest {
        let mut request = DeltaDiscoveryRequest {
            type_url: self.kind.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        let first = !std::mem::replace(&mut self.opened, true);
        if first {
            let told = |name: &Arc<str>| !self.made_up.contains(name) && !self.fixed.contains(name);
            let held = self.accepted.iter().filter(|(name, _)| told(name));
            request.initial_resource_versions =
                held.map(|(name, held)| (name.to_string(), held.version.clone())).collect();
        } else if self.reply_at().is_some_and(|at| at <= now.at)
            && let Some(reply) = self.replies.pop_front()
        {
            request.response_nonce = reply.nonce;
            request.error_detail = error_detail(reply.error);
        }
        if std::mem::take(&mut self.reworded) {
            // Virtual hosts are asked for as a whole first.
            let whole = first && self.kind == ResourceType::VirtualHost;
            let names = if whole { BTreeSet::new() } else { self.next_names() };
            let difference = |a: &BTreeSet<_>, b: &BTreeSet<_>| texts(a.difference(b));
            request.resource_names_subscribe = difference(&names, &self.subscribed);
            request.resource_names_unsubscribe = difference(&self.subscribed, &names);
            if first && self.kind == ResourceType::Scope {
                // As in Envoy, a first request without names asks for all.
                request.resource_names_subscribe.clear();
            } else if first && self.is_wildcard() && !self.wanted.is_empty() {
                // With some it has to say so.
                request.resource_names_subscribe.insert(0, ALL.to_owned());
            }
            self.reworded = names != *self.names();
            self.subscribed = names;
        }
        request
    }
}

//! Responses: each resource is judged by itself; the answer names what was refused.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryResponse, DiscoveryResponse, Resource as Wrapped,
    },
    google::protobuf,
};
use prost::{Message as _, Name as _};

use super::{
    Now, Session, Variant,
    decode::{LOCATOR, TEXT_MAX_BYTES, decode, digest_of, too_long},
    scopes::Keys,
    table::{Body, Digest, Held, Reply},
};
use crate::{
    snapshot::RejectedResource,
    source::xds::{self, REJECTIONS_MAX, Resource, ResourceType, rejection},
};

/// How many reasons a NACK carries.
const REASONS_MAX: usize = 10;

/// The longest `error_detail`, in bytes: servers put it into logs and headers.
const DETAIL_MAX_BYTES: usize = 4096;

/// A time to live that says "for ever".
const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What one response amounts to.
#[derive(Default)]
struct Judgement {
    names: HashSet<Arc<str>>,
    keys: Keys,
    /// Virtual hosts that the response takes away, or is going to be about.
    mentioned: HashSet<Arc<str>>,
    /// Listeners that are good by themselves.
    listeners: Vec<Listener>,
    rejected: Vec<RejectedResource>,
}

struct Listener {
    name: Arc<str>,
    held: Held,
    ttl: Option<Duration>,
}

impl Session {
    /// A response of the state-of-the-world variant.
    pub(in crate::source::xds) fn on_sotw(
        &mut self,
        stream: usize,
        response: DiscoveryResponse,
        now: Now,
    ) {
        let DiscoveryResponse { version_info, resources, type_url, nonce, .. } = response;
        let Some(kind) = self.of_url(stream, &type_url) else { return };
        let digest = digest_of(resources.iter().map(|any| any.value.as_slice()));
        let mut judgement = Judgement::default();
        let table = self.table_mut(kind);
        table.hear(table.is_wildcard());
        let too_long = self.too_long(kind, "version_info", &version_info, now);
        // Each resource would have it.
        let resources = if too_long.is_some() { Vec::new() } else { resources };
        judgement.rejected.extend(too_long);
        for (i, any) in resources.into_iter().enumerate() {
            let wrapped = if any.type_url.ends_with(&Wrapped::full_name()) {
                match Wrapped::decode(any.value.as_slice()) {
                    Ok(wrapped) => wrapped,
                    Err(error) => {
                        let path = format!("{}: resources[{i}]", kind.table());
                        let refused = rejection(&path, error.to_string());
                        self.table_mut(kind).judged("", std::slice::from_ref(&refused), now.wall);
                        judgement.rejected.push(refused);
                        continue;
                    }
                }
            } else {
                Wrapped { resource: Some(any), version: version_info.clone(), ..Wrapped::default() }
            };
            self.judge(kind, i, wrapped, now, &mut judgement);
        }
        let names = std::mem::take(&mut judgement.names);
        self.admit_listeners(&mut judgement, |name| !names.contains(name), now);
        let table = self.table_mut(kind);
        // What is absent is gone; but only an answer that was understood whole says so.
        if table.is_wildcard() && judgement.rejected.is_empty() {
            let absent: Vec<_> =
                table.accepted.keys().filter(|n| !names.contains(*n)).cloned().collect();
            for name in absent {
                table.withdraw(&name);
                table.remove(&name);
            }
        }
        if judgement.rejected.is_empty() {
            table.version.clone_from(&version_info);
            self.label = version_info;
        }
        self.answer(kind, nonce, digest, judgement.rejected, now);
    }

    /// A response of the delta variant.
    pub(in crate::source::xds) fn on_delta(
        &mut self,
        stream: usize,
        response: DeltaDiscoveryResponse,
        now: Now,
    ) {
        let DeltaDiscoveryResponse {
            system_version_info,
            resources,
            type_url,
            removed_resources,
            nonce,
            ..
        } = response;
        let Some(kind) = self.of_url(stream, &type_url) else { return };
        let values = resources.iter().filter_map(|r| r.resource.as_ref());
        let digest = digest_of(values.map(|any| any.value.as_slice()));
        let mentioned = resources.iter().map(|wrapped| &wrapped.name).chain(&removed_resources);
        let keys = self.kept_keys(kind, &mentioned.map(String::as_str).collect());
        let mut judgement = Judgement { keys, ..Judgement::default() };
        if kind == ResourceType::VirtualHost {
            let told = resources.iter().map(|wrapped| &wrapped.name).chain(&removed_resources);
            judgement.mentioned = told.map(|name| name.as_str().into()).collect();
        }
        self.table_mut(kind).hear(false);
        let too_long = self.too_long(kind, "system_version_info", &system_version_info, now);
        let is_named = !system_version_info.is_empty() && too_long.is_none();
        judgement.rejected.extend(too_long);
        for (i, wrapped) in resources.into_iter().enumerate() {
            self.judge(kind, i, wrapped, now, &mut judgement);
        }
        let removed: HashSet<&str> = removed_resources.iter().map(String::as_str).collect();
        self.admit_listeners(&mut judgement, |name| removed.contains(name), now);
        for name in removed_resources {
            self.removed(kind, name.into());
        }
        if is_named {
            self.label = system_version_info;
        }
        self.answer(kind, nonce, digest, judgement.rejected, now);
    }

    /// The refusal of a response's version, if it can't be kept.
    fn too_long(
        &mut self,
        kind: ResourceType,
        field: &str,
        version: &str,
        now: Now,
    ) -> Option<RejectedResource> {
        let refused = (version.len() > TEXT_MAX_BYTES)
            .then(|| rejection(&format!("{}: {field}", kind.table()), too_long()))?;
        self.table_mut(kind).judged("", std::slice::from_ref(&refused), now.wall);
        Some(refused)
    }

    /// A resource was not confirmed in time.
    pub(super) fn expired(&mut self, kind: ResourceType, name: Arc<str>) {
        match kind {
            ResourceType::Runtime | ResourceType::ExtensionConfig | ResourceType::VirtualHost => {
                self.removed(kind, name);
            }
            _ => self.table_mut(kind).remove(&name),
        }
    }

    /// The server has no such resource, or has it no longer.
    fn removed(&mut self, kind: ResourceType, name: Arc<str>) {
        let table = self.table_mut(kind);
        table.refused.clear(&name);
        if table.fixed.contains(&name) {
            return;
        }
        table.waiting.clear(&name);
        table.withdraw(&name);
        // A secret goes when nothing names it any more; as Envoy, nobody is left without
        // one because a server has forgotten it.
        if kind != ResourceType::Secret && table.accepted.contains_key(&name) {
            table.remove(&name);
        }
        // What needs one of these can do without, and must.
        if matches!(
            kind,
            ResourceType::Runtime | ResourceType::ExtensionConfig | ResourceType::VirtualHost
        ) {
            self.take_out(kind, &name);
        }
        let table = self.table(kind);
        if !table.is_wildcard() || table.asked.contains(&name) {
            self.make_up(kind, &name);
        }
    }

    /// What a file holds, which is a stream with one type, can't be used.
    pub(in crate::source::xds) fn refuse(
        &mut self,
        stream: usize,
        reasons: Vec<RejectedResource>,
        now: Now,
    ) {
        let Some(table) = self.tables.iter().find(|table| table.stream == Some(stream)) else {
            return;
        };
        let (kind, told) = (table.kind, reasons.iter().map(ToString::to_string));
        let digest = digest_of(told.collect::<Vec<_>>().iter().map(String::as_bytes));
        self.table_mut(kind).judged("", &reasons, now.wall);
        self.answer(kind, String::new(), digest, reasons, now);
    }

    fn of_url(&self, stream: usize, type_url: &str) -> Option<ResourceType> {
        let kind = ResourceType::of_url(type_url);
        // An answer to one that was not asked for would never be sent.
        let asked = |kind: &ResourceType| {
            let table = self.table(*kind);
            table.stream == Some(stream) && table.is_asked_for()
        };
        let kind = kind.filter(asked);
        if kind.is_none() {
            tracing::debug!(type_url, "a response of a type that was not asked for");
        }
        kind
    }

    fn judge(
        &mut self,
        kind: ResourceType,
        at: usize,
        mut wrapped: Wrapped,
        now: Now,
        judgement: &mut Judgement,
    ) {
        let value = wrapped.resource.as_ref().map(|any| any.value.as_slice());
        if wrapped.name.is_empty() {
            wrapped.name = value.and_then(xds::name_of).unwrap_or_default();
        }
        let (name, is_heartbeat) = (wrapped.name.clone(), value.is_none());
        // From now on it stands for what it is.
        judgement.mentioned.remove(name.as_str());
        let known = judgement.rejected.len();
        self.judge_one(kind, at, wrapped, now, judgement);
        let refused = judgement.rejected.get(known..).unwrap_or_default();
        // What the server has, and confirms, is what was refused.
        if !(is_heartbeat && refused.is_empty()) {
            self.table_mut(kind).judged(&name, refused, now.wall);
        }
    }

    fn judge_one(
        &mut self,
        kind: ResourceType,
        at: usize,
        wrapped: Wrapped,
        now: Now,
        judgement: &mut Judgement,
    ) {
        let Wrapped { name, resource_name, aliases, version, resource, ttl, .. } = wrapped;
        let place = || format!("{}: resources[{at}]", kind.table());
        let Ok(ttl) = ttl.map(|ttl| life(ttl).ok_or(())).transpose() else {
            let path = match name.as_str() {
                "" => place(),
                name => format!("{}[{name}]", kind.table()),
            };
            judgement.names.insert(name.into());
            let refused = rejection(&format!("{path}.ttl"), "is negative or no duration");
            return judgement.rejected.push(refused);
        };
        let Some(any) = resource else {
            if kind == ResourceType::VirtualHost
                && !self.table(kind).accepted.contains_key(name.as_str())
            {
                // So a server says that it has no such host.
                aliases.into_iter().chain([name]).for_each(|name| self.removed(kind, name.into()));
                return;
            }
            // A heartbeat: the resource lives on.
            let known = self.table(kind).accepted.get_key_value(name.as_str());
            match known.map(|(name, _)| Arc::clone(name)) {
                Some(name) => {
                    self.live(kind, &name, ttl, now);
                    judgement.names.insert(name);
                }
                None => judgement.rejected.push(rejection(&place(), "has no resource")),
            }
            return;
        };
        let name: Arc<str> = name.into();
        let path = || format!("{}[{name}]", kind.table());
        let refused = if name.is_empty() {
            Some(rejection(&place(), "has no name that could be read"))
        } else if name.len() > TEXT_MAX_BYTES {
            Some(rejection(&format!("{}.{}", place(), kind.name_field()), too_long()))
        } else if version.len() > TEXT_MAX_BYTES {
            Some(rejection(&format!("{}.version", path()), too_long()))
        } else if name.starts_with(LOCATOR) || resource_name.is_some() {
            Some(rejection(&path(), "xdstp names and resource locators are not supported"))
        } else if !aliases.is_empty() && kind != ResourceType::VirtualHost {
            Some(rejection(&path(), "aliases are not supported"))
        } else if ResourceType::of_url(&any.type_url) != Some(kind) {
            let reason = format!("is a `{}`, not the type that was asked for", any.type_url);
            Some(rejection(&path(), reason))
        } else if self.table(kind).fixed.contains(&name) {
            Some(rejection(&path(), "is among the bootstrap's static_resources"))
        } else if !judgement.names.insert(Arc::clone(&name)) {
            Some(rejection(&path(), "is given twice"))
        } else {
            None
        };
        if let Some(refused) = refused {
            return judgement.rejected.push(refused);
        }
        if !self.table(kind).wants(&name) {
            self.table_mut(kind).passed_over = true;
            return;
        }
        for alias in aliases {
            let table = self.table_mut(kind);
            if let Some(alias) = table.asked.get(alias.as_str()).cloned() {
                table.waiting.clear(&alias);
                table.aliases.insert(alias, Arc::clone(&name));
            }
        }
        match self.table_mut(kind).accepted.get_mut(&name) {
            // Endpoints that grow stale are renewed by being told again.
            Some(held)
                if held.digest == digest_of([any.value.as_slice()]) && !held.needs.renewal =>
            {
                if let Err(reasons) = judgement.keys.claim(&name, &held.needs) {
                    return judgement.rejected.extend(reasons);
                }
                held.version = version;
                let table = self.table_mut(kind);
                table.made_up.remove(&name);
                table.withdrawn.remove(&name);
                table.waiting.clear(&name);
            }
            _ => match decode(kind, &name, &version, &any)
                .and_then(|(held, references)| Ok((self.fits(&name, held)?, references)))
                .and_then(|(held, references)| {
                    judgement.keys.claim(&name, &held.needs)?;
                    Ok((held, references))
                }) {
                Ok((held, references)) => {
                    let stream = self.table(kind).stream;
                    if let Err(reason) = self.place(stream, &references) {
                        return judgement.rejected.push(reason);
                    }
                    let hosts = &self.table(kind).domains;
                    let mentioned = &judgement.mentioned;
                    if let Err(reasons) = hosts.check(&name, &held.needs.domains, mentioned) {
                        return judgement.rejected.extend(reasons);
                    }
                    if let Err(reason) = self.can_serve(&held) {
                        return judgement.rejected.push(reason);
                    }
                    if kind == ResourceType::Listener {
                        return judgement.listeners.push(Listener { name, held, ttl });
                    }
                    self.table_mut(kind).accept(Arc::clone(&name), held);
                }
                // The last good one stays.
                Err(reasons) => {
                    self.go_on_without(kind, &name);
                    return judgement.rejected.extend(reasons);
                }
            },
        }
        self.live(kind, &name, ttl, now);
    }

    /// Accepts the listeners whose address no other has that is there to stay.
    fn admit_listeners(
        &mut self,
        judgement: &mut Judgement,
        goes: impl Fn(&str) -> bool,
        now: Now,
    ) {
        let listeners = std::mem::take(&mut judgement.listeners);
        if listeners.is_empty() {
            return;
        }
        let mut taken = HashMap::new();
        let named: HashSet<_> = listeners.iter().map(|listener| &*listener.name).collect();
        for (name, held) in &self.table(ResourceType::Listener).accepted {
            if let Some(address) = held.needs.address().filter(|_| !named.contains(&**name))
                && !goes(name)
            {
                taken.insert(address, Arc::clone(name));
            }
        }
        for Listener { name, held, ttl } in listeners {
            let clash = held.needs.address().and_then(|address| {
                let owner = taken.entry(address).or_insert_with(|| Arc::clone(&name));
                (*owner != name).then(|| (Arc::clone(owner), address.1))
            });
            if let Some((owner, address)) = clash {
                let reason = format!("{address} is the address of listener `{owner}`");
                let refused = rejection(&format!("listeners[{name}].address"), reason);
                let table = self.table_mut(ResourceType::Listener);
                table.judged(&name, std::slice::from_ref(&refused), now.wall);
                judgement.rejected.push(refused);
                continue;
            }
            self.table_mut(ResourceType::Listener).accept(Arc::clone(&name), held);
            self.live(ResourceType::Listener, &name, ttl, now);
        }
    }

    /// Refuses what the streams have no means for.
    fn can_serve(&self, held: &Held) -> Result<(), RejectedResource> {
        let hosts = self.table(ResourceType::VirtualHost);
        let stream = hosts.stream.and_then(|at| self.streams.get(at));
        let delta = stream.is_some_and(|stream| stream.variant == Variant::Delta);
        match &held.body {
            Some(Body { resource: Resource::Routes(routes), .. }) if routes.vhds && !delta => {
                let path = format!("routes[{}].vhds", routes.name);
                Err(rejection(&path, "virtual hosts come in the delta variant only"))
            }
            _ => Ok(()),
        }
    }

    /// A filter's configuration has to be of a type that every place it is for takes.
    fn fits(&self, name: &Arc<str>, held: Held) -> Result<Held, Vec<RejectedResource>> {
        let Some(Body { resource: Resource::ExtensionConfig(config), .. }) = &held.body else {
            return Ok(held);
        };
        for (listener, holder) in &self.table(ResourceType::Listener).accepted {
            let mut filters = holder.needs.filters(name);
            let refusing = filters.find(|filter| !filter.type_names.contains(&config.type_name));
            if let Some(filter) = refusing {
                let path = format!("{}[{name}]", ResourceType::ExtensionConfig.table());
                let reason = format!(
                    "is a {}, and listener `{listener}` takes only {}",
                    config.type_name,
                    filter.type_names.join(", ")
                );
                return Err(vec![rejection(&path, reason)]);
            }
        }
        Ok(held)
    }

    /// A filter's first configuration was refused: as Envoy, its listener goes on without
    /// one, which answers its requests 500, rather than not to be there at all. One that
    /// serves already keeps serving as it did.
    fn go_on_without(&mut self, kind: ResourceType, name: &Arc<str>) {
        if kind != ResourceType::ExtensionConfig || self.table(kind).accepted.contains_key(name) {
            return;
        }
        self.table_mut(kind).waiting.clear(name);
        let listeners = self.table(ResourceType::Listener);
        let serves = listeners.pending.iter().any(|listener| {
            let held = listeners.accepted.get(listener);
            let needs_it = held.is_some_and(|held| held.needs.filters(name).next().is_some());
            needs_it && listeners.in_force.contains_key(listener)
        });
        if !serves {
            self.make_up(kind, name);
        }
    }

    /// Sets or lifts the end of a resource's life.
    fn live(&mut self, kind: ResourceType, name: &Arc<str>, ttl: Option<Duration>, now: Now) {
        let lives = &mut self.table_mut(kind).lives;
        match ttl {
            None => lives.clear(name),
            Some(ttl) => lives.set(name, now.at + ttl),
        }
    }

    /// Owes the server an ACK or a NACK, tells people what is new in it, and moves on.
    fn answer(
        &mut self,
        kind: ResourceType,
        nonce: String,
        digest: Digest,
        rejected: Vec<RejectedResource>,
        now: Now,
    ) {
        let variant = self.table(kind).stream.and_then(|at| self.streams.get(at));
        let delta = variant.is_some_and(|stream| stream.variant == Variant::Delta);
        self.hear_of_scopes(kind);
        let table = self.table_mut(kind);
        table.received = true;
        if kind == ResourceType::VirtualHost {
            table.heard_of_hosts();
        }
        table.nonce.clone_from(&nonce);
        if delta {
            // Every response is answered, in order.
            table.replies.iter_mut().for_each(|reply| reply.at = reply.at.min(now.at));
        } else {
            // Only the newest response can be answered.
            table.replies.clear();
        }
        let reply = if rejected.is_empty() {
            table.refusals.clear();
            table.last_ack = Some(now.wall);
            table.acks += 1;
            Reply { nonce, error: None, at: now.at }
        } else {
            let (new, pause) = table.refusals.note(digest);
            table.nacks += 1;
            let told = if new { table.telling.take(rejected.len(), now.at) } else { 0 };
            let total = rejected.len();
            let reasons: Vec<_> =
                rejected.iter().take(REJECTIONS_MAX).map(ToString::to_string).collect();
            let error = detail(&reasons, total);
            table.last_nack = Some((now.wall, reasons));
            self.rejected.extend(rejected.into_iter().take(told));
            if (1..total).contains(&told) {
                let more = format!("and {} more rejections", total - told);
                self.rejected.push(rejection(kind.table(), more));
            }
            Reply { nonce, error: Some(error), at: now.at + pause }
        };
        let table = self.table_mut(kind);
        // A file may be refused before anything of it is wanted.
        if table.is_asked_for() {
            table.replies.push_back(reply);
        }
        self.settle(now.at);
    }
}

/// A time to live; `None`: it is no duration, or a negative one, which must not end
/// anything.
fn life(ttl: protobuf::Duration) -> Option<Duration> {
    let seconds = u64::try_from(ttl.seconds).ok()?;
    let nanos = u32::try_from(ttl.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos).min(TTL_MAX))
}

/// A NACK's text: the first reasons, bounded, of so many in all.
fn detail(reasons: &[String], total: usize) -> String {
    let mut text = reasons.iter().take(REASONS_MAX).cloned().collect::<Vec<_>>().join("; ");
    if let Some(more) = total.checked_sub(REASONS_MAX).filter(|more| *more > 0) {
        text.push_str(&format!("; and {more} more"));
    }
    if text.len() > DETAIL_MAX_BYTES {
        let end = (0..=DETAIL_MAX_BYTES).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or_default());
    }
    text
}

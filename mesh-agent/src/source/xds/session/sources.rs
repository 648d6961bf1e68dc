//! Which stream carries which type, where resources say so themselves; and resources
//! that no stream carries.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use envoy_types::pb::google::protobuf::Any;

use super::{Carries, Now, Session, Stream, decode};
use crate::{
    snapshot::RejectedResource,
    source::xds::{
        ResourceType,
        config_source::Reference,
        options::{Fixed, Origin},
        rejection,
        session::Variant,
    },
};

/// The streams' origins.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// By the stream's place; those of [`Session::new`] are aggregated ones. `None`: it has
    /// ended, and the place is free.
    origins: Vec<Option<(Origin, Option<ResourceType>)>>,
    /// Places of streams that end once no resource refers to them.
    borrowed: BTreeSet<usize>,
    /// The clusters of management servers.
    known: BTreeSet<String>,
    /// Streams that nobody has opened yet.
    unopened: VecDeque<usize>,
    /// Streams that nobody has closed yet.
    unclosed: Vec<usize>,
}

impl Sources {
    pub(super) fn aggregated(streams: usize) -> Self {
        let origins = (0..streams).map(|_| Some((Origin::Ads, None))).collect();
        Self { origins, ..Self::default() }
    }

    fn position(&self, origin: &Origin, kind: Option<ResourceType>) -> Option<usize> {
        let is_it = |(known, carries): &(Origin, _)| known == origin && *carries == kind;
        self.origins.iter().position(|known| known.as_ref().is_some_and(is_it))
    }
}

impl Session {
    /// The clusters of management servers that a resource may name.
    pub(in crate::source::xds) fn knows(&mut self, clusters: BTreeSet<String>) {
        self.sources.known = clusters;
    }

    /// Adds a stream for types that none carries yet.
    pub(in crate::source::xds) fn carry(&mut self, origin: Origin, carries: Carries) -> usize {
        let Carries { variant, types } = carries;
        let free = self.sources.origins.iter().position(Option::is_none);
        let at = free.unwrap_or(self.streams.len());
        let stream = Stream { variant, connected: false, introduced: false };
        match self.streams.get_mut(at) {
            Some(place) => *place = stream,
            None => self.streams.push(stream),
        }
        for table in &mut self.tables {
            if table.stream.is_none() && types.contains(&table.kind) {
                table.stream = Some(at);
            }
        }
        let kind = match (&origin, types.as_slice()) {
            (Origin::Ads, _) => None,
            (_, [kind]) => Some(*kind),
            _ => None,
        };
        match self.sources.origins.get_mut(at) {
            Some(place) => *place = Some((origin, kind)),
            None => self.sources.origins.push(Some((origin, kind))),
        }
        self.sources.unopened.push_back(at);
        at
    }

    /// Streams that are to be closed, by their place; before new ones are opened there.
    pub(in crate::source::xds) fn poll_closed(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.sources.unclosed)
    }

    /// Whether that stream ends once no resource refers to it.
    pub(super) fn is_borrowed(&self, stream: usize) -> bool {
        self.sources.borrowed.contains(&stream)
    }

    /// Ends streams that resources referred to and none does any more: their type comes from
    /// where it came from before.
    pub(super) fn return_streams(&mut self) {
        for kind in ResourceType::ALL {
            let borrowed = self.table(kind).stream.is_some_and(|at| self.is_borrowed(at));
            if borrowed && self.is_free(kind) {
                let table = self.table_mut(kind);
                table.stream = table.home;
                table.reset_stream();
            }
        }
        let carries = |at: &usize| self.tables.iter().any(|table| table.stream == Some(*at));
        let ended: Vec<_> =
            self.sources.borrowed.iter().copied().filter(|at| !carries(at)).collect();
        for at in ended {
            self.sources.borrowed.remove(&at);
            self.sources.unopened.retain(|unopened| *unopened != at);
            self.sources.unclosed.push(at);
            if let Some(origin) = self.sources.origins.get_mut(at) {
                *origin = None;
            }
            if let Some(stream) = self.streams.get_mut(at) {
                stream.connected = false;
            }
        }
    }

    /// Streams that are to be opened: their place, their origin, and the one type they
    /// carry, unless they carry all.
    pub(in crate::source::xds) fn poll_streams(
        &mut self,
    ) -> Vec<(usize, Origin, Option<ResourceType>)> {
        let unopened = std::mem::take(&mut self.sources.unopened);
        let origins = &self.sources.origins;
        let found = unopened.into_iter().filter_map(|at| {
            let (origin, kind) = origins.get(at)?.as_ref()?;
            Some((at, origin.clone(), *kind))
        });
        found.collect()
    }

    /// Sees to it that the streams carry what is referred to from outside.
    pub(in crate::source::xds) fn refer(&mut self, references: &[Reference]) {
        if let Err(reason) = self.place(None, references) {
            self.rejected.push(reason);
        }
        // These hold for as long as the session does.
        for Reference { kind, .. } in references {
            if let Some(at) = self.table(*kind).stream {
                self.sources.borrowed.remove(&at);
            }
        }
    }

    /// Takes in resources that never change. Where there is nothing better, they go out
    /// alone when servers have had their time, which is up at `alone_by`.
    pub(in crate::source::xds) fn hold(
        &mut self,
        fixed: &[Fixed],
        alone_by: Option<Instant>,
        now: Now,
    ) {
        self.alone_by = alone_by.filter(|_| !fixed.is_empty());
        for Fixed { kind, name, value } in fixed {
            let any = Any { type_url: kind.type_url().to_owned(), value: value.to_vec() };
            let decoded = decode::decode(*kind, name, "static", &any);
            let reasons = match decoded {
                Ok((held, references)) => match self.place(None, &references) {
                    Ok(()) => {
                        let table = self.table_mut(*kind);
                        table.fixed.insert(Arc::clone(name));
                        table.accept(Arc::clone(name), held);
                        continue;
                    }
                    Err(reason) => vec![reason],
                },
                Err(reasons) => reasons,
            };
            self.rejected.extend(reasons);
        }
        self.settle(now.at);
    }

    /// Whether nobody would miss the stream of that type.
    fn is_free(&self, kind: ResourceType) -> bool {
        let table = self.table(kind);
        // Which routes scopes name is known only when they are there.
        let expected = || kind == ResourceType::Routes && self.takes_scopes();
        !table.claimed && table.wanted.is_empty() && !expected()
    }

    /// Sees to it that the streams carry what a resource refers to, and for how long it
    /// is waited for; `holder` is the resource's own stream, if it has one.
    pub(super) fn place(
        &mut self,
        holder: Option<usize>,
        references: &[Reference],
    ) -> Result<(), RejectedResource> {
        for Reference { kind, name, origin, timeout, path } in references {
            let refuse =
                |field: &str, reason: String| Err(rejection(&format!("{path}{field}"), reason));
            let holder = holder.and_then(|at| self.sources.origins.get(at)?.as_ref());
            let origin = match (origin, holder) {
                (Some(origin), _) => origin.clone(),
                (None, Some((Origin::File(_), _))) => {
                    return refuse("", "must say where from: a file is not asked".to_owned());
                }
                (None, Some((origin, _))) => origin.clone(),
                (None, None) => Origin::Ads,
            };
            let found = match &origin {
                Origin::Ads => self.sources.position(&origin, None),
                _ => self.sources.position(&origin, Some(*kind)),
            };
            let variant = match &origin {
                Origin::Ads if found.is_none() => {
                    return refuse(".ads", "the bootstrap has no ads_config".to_owned());
                }
                Origin::Service(service) => {
                    let unknown =
                        service.clusters.iter().find(|name| !self.sources.known.contains(*name));
                    if let Some(name) = unknown {
                        let reason = format!("`{name}` is no management server of the bootstrap");
                        return refuse(".api_config_source.grpc_services", reason);
                    }
                    service.variant
                }
                Origin::Ads | Origin::File(_) => Variant::Sotw,
            };
            let table = self.table(*kind);
            // What an aggregated stream does not carry is not to be had.
            let without = origin == Origin::Ads && table.stream.is_none();
            if !without && (found.is_none() || table.stream != found) {
                if !self.is_free(*kind) {
                    let reason = format!("other {} come from another source already", kind.table());
                    return refuse("", reason);
                }
                let table = self.table_mut(*kind);
                let before = std::mem::replace(&mut table.stream, found);
                if found.is_none() {
                    let at = self.carry(origin, Carries { variant, types: vec![*kind] });
                    self.sources.borrowed.insert(at);
                }
                let is_home = before.is_none_or(|at| !self.is_borrowed(at));
                let table = self.table_mut(*kind);
                if is_home {
                    table.home = before;
                }
                table.reset_stream();
            }
            let table = self.table_mut(*kind);
            table.claimed = true;
            match timeout {
                Some(timeout) => _ = table.timeouts.insert(Arc::clone(name), *timeout),
                None => _ = table.timeouts.remove(name),
            }
        }
        Ok(())
    }
}

//! Which stream carries which type, where resources say so themselves; and resources
//! that no stream carries.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use envoy_types::pb::google::protobuf::Any;

use super::{Carries, Now, Session, Stream, judge, table::Table};
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
    /// By the stream's place; those of [`Session::new`] are aggregated ones.
    origins: Vec<(Origin, Option<ResourceType>)>,
    /// The clusters of management servers.
    known: BTreeSet<String>,
    /// Streams that nobody has opened yet.
    unopened: VecDeque<usize>,
}

impl Sources {
    pub(super) fn aggregated(streams: usize) -> Self {
        let origins = (0..streams).map(|_| (Origin::Ads, None)).collect();
        Self { origins, ..Self::default() }
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
        let at = self.streams.len();
        self.streams.push(Stream { variant, connected: false, introduced: false });
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
        self.sources.origins.push((origin, kind));
        self.sources.unopened.push_back(at);
        at
    }

    /// Streams that are to be opened: their place, their origin, and the one type they
    /// carry, unless they carry all.
    pub(in crate::source::xds) fn poll_streams(
        &mut self,
    ) -> Vec<(usize, Origin, Option<ResourceType>)> {
        let unopened = std::mem::take(&mut self.sources.unopened);
        let origins = &self.sources.origins;
        let found = unopened.into_iter().filter_map(|at| {
            let (origin, kind) = origins.get(at)?;
            Some((at, origin.clone(), *kind))
        });
        found.collect()
    }

    /// Whether everything was said on that stream that has to be for a beginning.
    pub(in crate::source::xds) fn is_told(&self, stream: usize) -> bool {
        let mut tables = self.tables.iter().filter(|table| table.stream == Some(stream));
        tables.all(|table| table.received || (!table.is_always_asked() && table.wanted.is_empty()))
    }

    /// Sees to it that the streams carry what is referred to from outside.
    pub(in crate::source::xds) fn refer(&mut self, references: &[Reference]) {
        if let Err(reason) = self.place(None, references) {
            self.rejected.push(reason);
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
            let decoded = judge::decode(*kind, name, "static", &any);
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
            let holder = holder.and_then(|at| self.sources.origins.get(at));
            let origin = match (origin, holder) {
                (Some(origin), _) => origin.clone(),
                (None, Some((Origin::File(_), _))) => {
                    return refuse("", "must say where from: a file is not asked".to_owned());
                }
                (None, Some((origin, _))) => origin.clone(),
                (None, None) => Origin::Ads,
            };
            let found = match &origin {
                Origin::Ads => self.sources.origins.iter().position(|(o, _)| *o == Origin::Ads),
                _ => {
                    let wanted = (origin.clone(), Some(*kind));
                    self.sources.origins.iter().position(|known| *known == wanted)
                }
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
                if !table.is_free() {
                    let reason = format!("other {} come from another source already", kind.table());
                    return refuse("", reason);
                }
                self.table_mut(*kind).stream = found;
                if found.is_none() {
                    self.carry(origin, Carries { variant, types: vec![*kind] });
                }
                self.table_mut(*kind).reset_stream();
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

impl Table {
    /// Whether nobody would miss its stream.
    fn is_free(&self) -> bool {
        !self.claimed && self.wanted.is_empty()
    }
}

//! Typed handles of the kernel's maps.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, LpmTrie, Map, MapData, MapError, MapInfo, PerCpuArray, SockHash, lpm_trie,
    },
};
use mesh_common::{
    abi::{ABI_VERSION, capacity, map},
    address::Address,
    key::{AddressKey, ConnectionKey, ListenerKey, ListenerKind, PortKey},
    value::{Config, OriginalDestination, Outside, Owner, PodEntry},
    verdict::Verdict,
};

use super::{error::CaptureError, options::Exclusions};
use crate::model::workload::MtlsMode;

/// `BPF_NOEXIST`.
const BPF_NOEXIST: u64 = 1;

/// How many entries the maps hold, over all pods of the node. A change takes effect
/// when the maps are made anew: after `teardown`, or with another ABI version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapCapacities {
    /// Enrolled pods.
    pub pods: u32,
    /// Addresses of pods, and of the node once for each pod.
    pub addresses: u32,
    /// Excluded ports, for each direction.
    pub excluded_ports: u32,
    /// Excluded networks.
    pub excluded_cidrs: u32,
    /// Captured connections that wait for the agent to accept them.
    pub original_destinations: u32,
    /// Services of the kernel path, once for each pod that may dial them.
    pub services: u32,
    /// Live connections of the kernel path.
    pub authorized: u32,
    /// Spliced sockets, two for each connection; more stay on TCP.
    pub spliced: u32,
    /// Live connections of probers.
    pub probes: u32,
}

impl Default for MapCapacities {
    fn default() -> Self {
        Self {
            pods: capacity::PODS,
            addresses: capacity::ADDRESSES,
            excluded_ports: capacity::EXCLUDED_PORTS,
            excluded_cidrs: capacity::EXCLUDED_CIDRS,
            original_destinations: capacity::ORIGINAL_DESTINATIONS,
            services: capacity::SERVICES,
            authorized: capacity::AUTHORIZED,
            spliced: capacity::SPLICED,
            probes: capacity::PROBES,
        }
    }
}

impl MapCapacities {
    /// Sets one by its field's name.
    ///
    /// # Errors
    /// What is wrong with the name.
    pub fn set(&mut self, name: &str, entries: u32) -> Result<(), String> {
        let all = [
            ("pods", &mut self.pods),
            ("addresses", &mut self.addresses),
            ("excluded_ports", &mut self.excluded_ports),
            ("excluded_cidrs", &mut self.excluded_cidrs),
            ("original_destinations", &mut self.original_destinations),
            ("services", &mut self.services),
            ("authorized", &mut self.authorized),
            ("spliced", &mut self.spliced),
            ("probes", &mut self.probes),
        ];
        let names = all.each_ref().map(|(name, _)| *name);
        match all.into_iter().find(|(known, _)| *known == name) {
            Some((_, size)) => *size = entries,
            None => return Err(format!("`{name}` is none of {}", names.join(", "))),
        }
        Ok(())
    }

    /// Each resizable map with its capacity.
    pub(super) fn by_map(&self) -> [(&'static str, u32); 15] {
        [
            (map::PODS, self.pods),
            (map::ADDRESSES, self.addresses),
            (map::OUTBOUND_PORTS, self.excluded_ports),
            (map::INBOUND_PORTS, self.excluded_ports),
            (map::OUTBOUND_CIDRS, self.excluded_cidrs),
            (map::ORIGINAL_DESTINATIONS, self.original_destinations),
            (map::SERVICES, self.services),
            (map::AUTHORIZED, self.authorized),
            (map::SPLICED, self.spliced),
            (map::LEGS, self.spliced),
            (map::GRANTS, self.spliced),
            (map::PROBES, self.probes),
            (map::LISTENERS, self.pods.saturating_mul(4)),
            (map::POD_ADDRESSES, self.addresses),
            (map::OUTSIDES, self.addresses),
        ]
    }
}

/// The maps that the agent writes and reads.
pub(super) struct Maps {
    config: Array<MapData, Config>,
    pods: HashMap<MapData, u64, PodEntry>,
    addresses: HashMap<MapData, AddressKey, u32>,
    outbound_ports: HashMap<MapData, PortKey, u32>,
    outbound_cidrs: LpmTrie<MapData, AddressKey, u32>,
    inbound_ports: HashMap<MapData, PortKey, u32>,
    original_destinations: HashMap<MapData, ConnectionKey, OriginalDestination>,
    listeners: SockHash<MapData, ListenerKey>,
    probers: HashMap<MapData, u64, u32>,
    pod_addresses: HashMap<MapData, Address, u64>,
    outsides: HashMap<MapData, Address, Outside>,
    verdicts: PerCpuArray<MapData, u64>,
    /// The pods whose applications may be spliced with the agent.
    splicing: BTreeSet<u64>,
    /// As the kernel has them: pinned maps keep their size whatever the options say.
    capacities: BTreeMap<&'static str, u32>,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maps").field("capacities", &self.capacities).finish_non_exhaustive()
    }
}

impl Maps {
    /// Takes the maps, which are pinned in `directory`, out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf, directory: &Path) -> Result<Self, CaptureError> {
        fn one<T: TryFrom<Map, Error = MapError>>(
            ebpf: &mut Ebpf,
            name: &'static str,
        ) -> Result<T, CaptureError> {
            ebpf.take_map(name)
                .ok_or(CaptureError::Missing(name))?
                .try_into()
                .map_err(|source| CaptureError::Map { map: name, source })
        }
        let mut capacities = BTreeMap::new();
        for name in map::PINNED {
            let info = MapInfo::from_pin(directory.join(name))
                .map_err(|source| CaptureError::Map { map: name, source })?;
            capacities.insert(name, info.max_entries());
        }
        Ok(Self {
            capacities,
            config: one(ebpf, map::CONFIG)?,
            pods: one(ebpf, map::PODS)?,
            addresses: one(ebpf, map::ADDRESSES)?,
            outbound_ports: one(ebpf, map::OUTBOUND_PORTS)?,
            outbound_cidrs: one(ebpf, map::OUTBOUND_CIDRS)?,
            inbound_ports: one(ebpf, map::INBOUND_PORTS)?,
            original_destinations: one(ebpf, map::ORIGINAL_DESTINATIONS)?,
            listeners: one(ebpf, map::LISTENERS)?,
            probers: one(ebpf, map::PROBERS)?,
            pod_addresses: one(ebpf, map::POD_ADDRESSES)?,
            outsides: one(ebpf, map::OUTSIDES)?,
            verdicts: one(ebpf, map::VERDICTS)?,
            splicing: BTreeSet::new(),
        })
    }

    /// The ABI version of who made the maps; 0 where they are new.
    pub(super) fn abi_version(&self) -> Result<u32, CaptureError> {
        let config = self.config.get(&0, 0).map_err(refused(&self.capacities, map::CONFIG))?;
        Ok(config.abi_version)
    }

    /// `kernel_path`: whether connections may go from pod to pod without the agent.
    /// `drop_non_tcp`: whether the guard drops what is not TCP.
    pub(super) fn configure(
        &mut self,
        log: bool,
        kernel_path: bool,
        drop_non_tcp: bool,
    ) -> Result<(), CaptureError> {
        let config = Config {
            abi_version: ABI_VERSION,
            log: log.into(),
            kernel_path_max: if kernel_path { self.kernel_path_max() } else { 0 },
            drop_non_tcp: drop_non_tcp.into(),
        };
        self.config.set(0, config, 0).map_err(refused(&self.capacities, map::CONFIG))
    }

    /// How many connections the kernel path takes at once: some room is left for what
    /// is decided at the same time on other CPUs.
    pub(super) fn kernel_path_max(&self) -> u32 {
        let capacity = self.capacities.get(map::AUTHORIZED).copied().unwrap_or_default();
        capacity - capacity / 16
    }

    /// Turns capture on for a pod.
    pub(super) fn add_pod(&mut self, cookie: u64, mtls: MtlsMode) -> Result<(), CaptureError> {
        let strict = (mtls == MtlsMode::Strict).into();
        let outside = self.outsides_of(cookie).next().map(|(_, outside)| outside);
        let entry = PodEntry {
            enrolled_ns: monotonic_ns(),
            strict,
            redirect: outside.map_or(0, |outside| outside.redirect),
            road: outside.map_or(0, |outside| outside.inside),
            splice: self.splicing.contains(&cookie).into(),
            bridged: outside.is_some_and(|outside| outside.is_bridged()).into(),
            _zero: 0,
        };
        self.pods.insert(cookie, entry, 0).map_err(refused(&self.capacities, map::PODS))
    }

    /// Whether new connections of the pod's application with the agent may be spliced.
    pub(super) fn set_splicing(&mut self, cookie: u64, wanted: bool) -> Result<(), CaptureError> {
        if wanted {
            self.splicing.insert(cookie);
        } else {
            self.splicing.remove(&cookie);
        }
        match self.pods.get(&cookie, 0) {
            Ok(entry) if entry.splice != u32::from(wanted) => {
                let entry = PodEntry { splice: wanted.into(), ..entry };
                self.pods.insert(cookie, entry, 0).map_err(refused(&self.capacities, map::PODS))
            }
            // It is written with the entry.
            _ => Ok(()),
        }
    }

    /// Turns capture off for a pod.
    pub(super) fn remove_pod(&mut self, cookie: u64) -> Result<(), CaptureError> {
        self.splicing.remove(&cookie);
        absent_is_fine(self.pods.remove(&cookie)).map_err(refused(&self.capacities, map::PODS))
    }

    /// Whether capture is on for a pod.
    pub(super) fn is_captured(&self, cookie: u64) -> bool {
        self.pods.get(&cookie, 0).is_ok()
    }

    /// The pods that capture is on for.
    pub(super) fn pods(&self) -> Vec<u64> {
        self.pods.keys().filter_map(Result::ok).collect()
    }

    /// Writes what the decisions ask about one pod, in place of what was there.
    pub(super) fn set_facts(
        &mut self,
        cookie: u64,
        own: &[IpAddr],
        node: &[IpAddr],
        exclusions: &Exclusions,
    ) -> Result<(), CaptureError> {
        self.forget_facts(cookie)?;
        let owned = node
            .iter()
            .map(|ip| (ip, Owner::Node))
            // After the node's: a pod may share an address with its node.
            .chain(own.iter().map(|ip| (ip, Owner::Pod)));
        for (ip, owner) in owned {
            let key = AddressKey { netns_cookie: cookie, address: (*ip).into() };
            self.addresses
                .insert(key, owner as u32, 0)
                .map_err(refused(&self.capacities, map::ADDRESSES))?;
        }
        self.forget_claims(cookie, own)?;
        self.claim(cookie, own)?;
        for port in &exclusions.outbound_ports {
            self.outbound_ports
                .insert(PortKey::new(cookie, *port), 1, 0)
                .map_err(refused(&self.capacities, map::OUTBOUND_PORTS))?;
        }
        for port in &exclusions.inbound_ports {
            self.inbound_ports
                .insert(PortKey::new(cookie, *port), 1, 0)
                .map_err(refused(&self.capacities, map::INBOUND_PORTS))?;
        }
        for cidr in &exclusions.outbound_cidrs {
            let before = if cidr.addr().is_ipv4() {
                AddressKey::V4_PREFIX_BITS
            } else {
                AddressKey::V6_PREFIX_BITS
            };
            let address = AddressKey { netns_cookie: cookie, address: cidr.network().into() };
            let key = lpm_trie::Key::new(before + u32::from(cidr.prefix_len()), address);
            self.outbound_cidrs
                .insert(&key, 1, 0)
                .map_err(refused(&self.capacities, map::OUTBOUND_CIDRS))?;
        }
        Ok(())
    }

    /// Forgets what the decisions ask about one pod, and what it has published.
    pub(super) fn remove_facts(&mut self, cookie: u64) -> Result<(), CaptureError> {
        self.withdraw(|key, _| key.netns_cookie == cookie);
        self.forget_facts(cookie)
    }

    /// Leaves what was published: connections may wait in a listener that was handed over.
    fn forget_facts(&mut self, cookie: u64) -> Result<(), CaptureError> {
        let keys: Vec<_> = mine(self.addresses.keys(), |key| key.netns_cookie == cookie);
        for key in keys {
            absent_is_fine(self.addresses.remove(&key))
                .map_err(refused(&self.capacities, map::ADDRESSES))?;
        }
        let keys: Vec<_> = mine(self.outbound_ports.keys(), |key| key.netns_cookie == cookie);
        for key in keys {
            absent_is_fine(self.outbound_ports.remove(&key))
                .map_err(refused(&self.capacities, map::OUTBOUND_PORTS))?;
        }
        let keys: Vec<_> = mine(self.inbound_ports.keys(), |key| key.netns_cookie == cookie);
        for key in keys {
            absent_is_fine(self.inbound_ports.remove(&key))
                .map_err(refused(&self.capacities, map::INBOUND_PORTS))?;
        }
        let keys: Vec<_> =
            mine(self.outbound_cidrs.keys(), |key| key.data().netns_cookie == cookie);
        for key in keys {
            absent_is_fine(self.outbound_cidrs.remove(&key))
                .map_err(refused(&self.capacities, map::OUTBOUND_CIDRS))?;
        }
        Ok(())
    }

    /// Notes addresses as a pod's, but for those that another one had before.
    pub(super) fn claim(&mut self, cookie: u64, addresses: &[IpAddr]) -> Result<(), CaptureError> {
        for ip in addresses {
            match self.pod_addresses.insert(Address::from(*ip), cookie, BPF_NOEXIST) {
                Err(error) if errno(&error) == Some(libc::EEXIST) => {}
                done => done.map_err(refused(&self.capacities, map::POD_ADDRESSES))?,
            }
        }
        Ok(())
    }

    /// Forgets which addresses are a pod's: they may be another one's next.
    pub(super) fn disclaim(&mut self, cookie: u64) -> Result<(), CaptureError> {
        self.set_outside(cookie, &[], None)?;
        self.forget_claims(cookie, &[])
    }

    fn forget_claims(&mut self, cookie: u64, but_for: &[IpAddr]) -> Result<(), CaptureError> {
        let of_pod = self.pod_addresses.iter().filter_map(Result::ok);
        let stale: Vec<_> = of_pod
            .filter(|(address, owner)| {
                *owner == cookie && !but_for.contains(&IpAddr::from(*address))
            })
            .map(|(address, _)| address)
            .collect();
        for address in stale {
            absent_is_fine(self.pod_addresses.remove(&address))
                .map_err(refused(&self.capacities, map::POD_ADDRESSES))?;
        }
        Ok(())
    }

    /// Whether another pod had the address before.
    pub(super) fn is_of_another(&self, cookie: u64, address: IpAddr) -> bool {
        let address = Address::from(address);
        self.pod_addresses.get(&address, 0).is_ok_and(|owner| owner != cookie)
            || self.outsides.get(&address, 0).is_ok_and(|to| to.netns_cookie != cookie)
    }

    fn outsides_of(&self, cookie: u64) -> impl Iterator<Item = (Address, Outside)> {
        let all = self.outsides.iter().filter_map(Result::ok);
        all.filter(move |(_, outside)| outside.netns_cookie == cookie)
    }

    /// Tells the guard outside pods where packets for this one go: by `addresses` to
    /// `outside`, or nowhere. To be followed by [`Maps::add_pod`] where the pod is captured.
    pub(super) fn set_outside(
        &mut self,
        cookie: u64,
        addresses: &[IpAddr],
        outside: Option<Outside>,
    ) -> Result<(), CaptureError> {
        let wanted: Vec<Address> = match outside {
            Some(_) => addresses.iter().copied().map(Address::from).collect(),
            None => Vec::new(),
        };
        let stale: Vec<_> = self
            .outsides_of(cookie)
            .map(|(address, _)| address)
            .filter(|address| !wanted.contains(address))
            .collect();
        for address in stale {
            absent_is_fine(self.outsides.remove(&address))
                .map_err(refused(&self.capacities, map::OUTSIDES))?;
        }
        let Some(outside) = outside else { return Ok(()) };
        for address in wanted {
            if self.outsides.get(&address, 0).is_ok_and(|known| known.netns_cookie != cookie) {
                continue;
            }
            self.outsides
                .insert(address, outside, 0)
                .map_err(refused(&self.capacities, map::OUTSIDES))?;
        }
        Ok(())
    }

    /// From now on the node's routes lead packets into a pod, and out of it.
    pub(super) fn stop_redirect(&mut self, cookie: u64) -> Result<(), CaptureError> {
        let all: Vec<_> = self.outsides_of(cookie).collect();
        for (address, outside) in all {
            let outside = Outside { redirect: 0, ..outside };
            self.outsides
                .insert(address, outside, 0)
                .map_err(refused(&self.capacities, map::OUTSIDES))?;
        }
        Ok(())
    }

    /// Lets processes of these cgroups, by ID, and of no others probe the node's pods.
    pub(super) fn set_probers(&mut self, cgroups: &[u64]) -> Result<(), CaptureError> {
        for id in mine(self.probers.keys(), |id| !cgroups.contains(id)) {
            absent_is_fine(self.probers.remove(&id))
                .map_err(refused(&self.capacities, map::PROBERS))?;
        }
        for id in cgroups {
            self.probers.insert(*id, 1, 0).map_err(refused(&self.capacities, map::PROBERS))?;
        }
        Ok(())
    }

    /// Puts one of the agent's listening sockets where the lookup program finds it.
    pub(super) fn add_listener(
        &mut self,
        cookie: u64,
        kind: ListenerKind,
        v6: bool,
        socket: BorrowedFd<'_>,
    ) -> Result<(), CaptureError> {
        self.listeners
            .insert(ListenerKey::new(cookie, kind, v6), socket.as_raw_fd(), 0)
            .map_err(refused(&self.capacities, map::LISTENERS))
    }

    /// Takes a pod's listeners away.
    pub(super) fn remove_listeners(&mut self, cookie: u64) -> Result<(), CaptureError> {
        for kind in [ListenerKind::Inbound, ListenerKind::Hbone] {
            for v6 in [false, true] {
                absent_is_fine(self.listeners.remove(&ListenerKey::new(cookie, kind, v6)))
                    .map_err(refused(&self.capacities, map::LISTENERS))?;
            }
        }
        Ok(())
    }

    /// Removes published original destinations that match; returns how many.
    pub(super) fn withdraw(
        &mut self,
        matches: impl Fn(&ConnectionKey, &OriginalDestination) -> bool,
    ) -> usize {
        let stale: Vec<_> = self
            .original_destinations
            .iter()
            .filter_map(Result::ok)
            .filter(|(key, value)| matches(key, value))
            .map(|(key, _)| key)
            .collect();
        stale.iter().filter(|key| self.original_destinations.remove(key).is_ok()).count()
    }

    /// Each verdict's count since the maps were made.
    pub(super) fn verdicts(&self) -> Result<Vec<(Verdict, u64)>, CaptureError> {
        Verdict::ALL
            .into_iter()
            .map(|verdict| {
                let per_cpu = self
                    .verdicts
                    .get(&(verdict as u32), 0)
                    .map_err(refused(&self.capacities, map::VERDICTS))?;
                Ok((verdict, per_cpu.iter().sum()))
            })
            .collect()
    }
}

/// What the kernel's answer means: a map that is full is told apart, by name.
fn refused(
    capacities: &BTreeMap<&'static str, u32>,
    map: &'static str,
) -> impl FnOnce(MapError) -> CaptureError {
    let capacity = capacities.get(map).copied().unwrap_or_default();
    move |source| match errno(&source) {
        // A full hash map says E2BIG, a full trie ENOSPC.
        Some(libc::E2BIG | libc::ENOSPC) => CaptureError::MapFull { map, capacity },
        _ => CaptureError::Map { map, source },
    }
}

fn errno(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}

/// Whether the map merely has no such key.
pub(super) fn is_absent(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound | MapError::ElementNotFound)
        || errno(error) == Some(libc::ENOENT)
}

fn mine<K>(
    keys: impl Iterator<Item = Result<K, MapError>>,
    is_mine: impl Fn(&K) -> bool,
) -> Vec<K> {
    keys.filter_map(Result::ok).filter(is_mine).collect()
}

/// Another handle of a pinned map, in the directory of them all.
pub(super) fn pinned(maps: &Path, name: &'static str) -> Result<Map, CaptureError> {
    let failed = |source| CaptureError::Map { map: name, source };
    let data = MapData::from_pin(maps.join(name)).map_err(failed)?;
    Map::from_map_data(data).map_err(failed)
}

/// Nanoseconds of the clock that `bpf_ktime_get_ns` reads.
pub(super) fn monotonic_ns() -> u64 {
    nix::time::ClockId::CLOCK_MONOTONIC.now().map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or_default();
        seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or_default()
    })
}

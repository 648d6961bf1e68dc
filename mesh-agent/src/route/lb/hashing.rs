//! Endpoints by a request's hash: ring hash (ketama) and Maglev, the same endpoint for
//! the same hash and endpoints as Envoy.
//!
//! Spec: `envoy/extensions/load_balancing_policies/{ring_hash,maglev}/v3/*.proto`;
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", §3.4.

use std::{fmt::Write, net::IpAddr};

use twox_hash::XxHash64;

use super::candidates::HostSet;
use crate::model::{
    budget::Charge,
    cluster::{Endpoint, HashFunction, LbPolicy, MAGLEV_PLACE_BYTES, RING_POINT_BYTES, TableSpace},
};

/// Envoy's seed of MurmurHash2.
const MURMUR_SEED: u64 = 0xc70f_6907;

/// A table from hashes to hosts.
#[derive(Debug)]
pub(super) struct Table {
    kind: Kind,
    /// Set, and host within.
    hosts: Vec<(usize, usize)>,
    /// Of what its cluster was promised.
    promised_bytes: usize,
    /// For what is beyond.
    _charge: Option<Charge>,
}

#[derive(Debug)]
enum Kind {
    /// By hash; the host is an index.
    Ring(Vec<Point>),
    Maglev(Vec<u32>),
}

/// Packed: there may be millions.
#[derive(Debug, Clone, Copy)]
#[repr(Rust, packed(4))]
struct Point {
    hash: u64,
    host: u32,
}

const _: () = assert!(size_of::<Point>() == RING_POINT_BYTES);
const _: () = assert!(size_of::<u32>() == MAGLEV_PLACE_BYTES);

/// What a cluster's tables may still take while they are made.
#[derive(Debug)]
pub(super) struct Room<'a> {
    space: Option<&'a TableSpace>,
    promised_bytes: usize,
    /// Whether something was not made, or smaller than weights ask for.
    pub(super) short: bool,
}

impl<'a> Room<'a> {
    pub(super) fn new(space: Option<&'a TableSpace>) -> Self {
        let promised_bytes = space.map_or(0, TableSpace::bytes);
        Self { space, promised_bytes, short: false }
    }

    /// A table of before stays.
    pub(super) fn keep(&mut self, table: &Table) {
        self.promised_bytes = self.promised_bytes.saturating_sub(table.promised_bytes);
    }

    /// So many bytes: of what was promised, and what has to be charged beyond.
    fn take(&mut self, bytes: usize) -> Option<(usize, Option<Charge>)> {
        let own = bytes.min(self.promised_bytes);
        let charge = match bytes - own {
            0 => None,
            more => Some(self.space?.more(more)?),
        };
        self.promised_bytes -= own;
        Some((own, charge))
    }
}

impl Table {
    /// `None` where the policy goes by no hash, there is nobody, or no room.
    pub(super) fn new(
        policy: LbPolicy,
        sets: &[HostSet],
        weights: &[u32],
        room: &mut Room<'_>,
    ) -> Option<Self> {
        if !policy.is_by_hash() {
            return None;
        }
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        let mut hosts = Vec::new();
        let mut shares = Vec::new();
        for (i, (set, weight)) in sets.iter().zip(weights).enumerate() {
            let of_set: f64 = set.hosts.iter().map(|host| f64::from(host.endpoint.weight)).sum();
            for (j, host) in set.hosts.iter().enumerate() {
                hosts.push((i, j));
                let share = f64::from(*weight) / total * f64::from(host.endpoint.weight) / of_set;
                shares.push((host.endpoint.address.to_string(), share));
            }
        }
        if hosts.is_empty() {
            return None;
        }
        let (promised_bytes, _charge, kind) = match policy {
            LbPolicy::RingHash { min_size, max_size, function } => {
                let scale = scale(&shares, min_size, max_size);
                let bytes = |scale: f64| scale.ceil() as usize * RING_POINT_BYTES;
                let (scale, (promised, charge)) = match room.take(bytes(scale)) {
                    Some(taken) => (scale, taken),
                    None => {
                        room.short = true;
                        // As if it may not be larger than it has to be.
                        let scale = min_size as f64;
                        (scale, room.take(bytes(scale))?)
                    }
                };
                (promised, charge, Kind::Ring(ring(&shares, scale, function)))
            }
            LbPolicy::Maglev { table_size } => {
                let Some((promised, charge)) = room.take(table_size as usize * MAGLEV_PLACE_BYTES)
                else {
                    room.short = true;
                    return None;
                };
                (promised, charge, Kind::Maglev(maglev(&shares, table_size)))
            }
            LbPolicy::RoundRobin
            | LbPolicy::LeastRequest { .. }
            | LbPolicy::LeastRequestFullScan
            | LbPolicy::Random => return None,
        };
        Some(Self { kind, hosts, promised_bytes, _charge })
    }

    /// Whose the hash is; at another `attempt` somebody else's, as if that one were not there.
    pub(super) fn pick(&self, hash: u64, attempt: u32) -> Option<(usize, usize)> {
        let host = match &self.kind {
            Kind::Ring(ring) => {
                let at = ring.partition_point(|point| point.hash < hash) + attempt as usize;
                ring.get(at.checked_rem(ring.len())?)?.host
            }
            Kind::Maglev(table) => {
                let hash = match attempt {
                    0 => hash,
                    attempt => hash ^ (u64::MAX - u64::from(attempt) + 1),
                };
                let at = usize::try_from(hash % table.len() as u64).ok()?;
                *table.get(at)?
            }
        };
        self.hosts.get(host as usize).copied()
    }
}

/// Whose the hash is where there is no room for a table: each host's claim to it is worked
/// out, and the strongest has it. As consistent as a table, and slower.
///
/// Spec: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates"
/// (highest random weight), with weights.
pub(super) fn pick_without_table(
    sets: &[HostSet],
    weights: &[u32],
    hash: u64,
    attempt: u32,
) -> Option<(usize, usize)> {
    let mut claims = Vec::new();
    for (i, (set, weight)) in sets.iter().zip(weights).enumerate() {
        let of_set: f64 = set.hosts.iter().map(|host| f64::from(host.endpoint.weight)).sum();
        for (j, host) in set.hosts.iter().enumerate() {
            let Endpoint { address, weight: own, .. } = &*host.endpoint;
            let ip = match address.ip() {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            let mut key = [0; 18];
            key[..16].copy_from_slice(&ip.octets());
            key[16..].copy_from_slice(&address.port().to_be_bytes());
            // Between 0 and 1, and neither.
            let drawn = ((xx_hash(&key, hash) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
            let share = f64::from(*weight) * f64::from(*own) / of_set;
            claims.push((-drawn.ln() / share, (i, j)));
        }
    }
    claims.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
    let at = (attempt as usize).checked_rem(claims.len())?;
    claims.get(at).map(|(_, host)| *host)
}

/// How many points a share of 1 has.
fn scale(shares: &[(String, f64)], min_size: u64, max_size: u64) -> f64 {
    let least = shares.iter().map(|(_, share)| *share).fold(1.0, f64::min);
    ((least * min_size as f64).ceil() / least).min(max_size as f64)
}

fn ring(shares: &[(String, f64)], scale: f64, function: HashFunction) -> Vec<Point> {
    // Sums of fractions may come to one more.
    let most = scale.ceil() as usize;
    let mut ring = Vec::with_capacity(most);
    let (mut made, mut wanted) = (0.0, 0.0);
    let mut key = String::new();
    for (host, (address, share)) in (0..).zip(shares) {
        wanted += scale * share;
        let mut i = 0_u64;
        while made < wanted && ring.len() < most {
            key.clear();
            // Strings take all that is written to them.
            _ = write!(key, "{address}_{i}");
            let hash = match function {
                HashFunction::XxHash => xx_hash(key.as_bytes(), 0),
                HashFunction::MurmurHash2 => murmur_hash2(key.as_bytes(), MURMUR_SEED),
            };
            ring.push(Point { hash, host });
            i += 1;
            made += 1.0;
        }
    }
    ring.sort_unstable_by_key(|point| point.hash);
    ring
}

fn maglev(shares: &[(String, f64)], table_size: u32) -> Vec<u32> {
    struct Entry {
        offset: u64,
        skip: u64,
        share: f64,
        target: f64,
        next: u64,
    }
    const FREE: u32 = u32::MAX;
    let size = u64::from(table_size);
    let most = shares.iter().map(|(_, share)| *share).fold(0.0, f64::max);
    let entry = |(address, share): &(String, f64)| Entry {
        offset: xx_hash(address.as_bytes(), 0) % size,
        skip: xx_hash(address.as_bytes(), 1) % (size - 1) + 1,
        share: *share,
        target: 0.0,
        next: 0,
    };
    let mut entries: Vec<_> = shares.iter().map(entry).collect();
    let mut table = vec![FREE; table_size as usize];
    let mut free = table.len();
    let mut turn = 0.0;
    while free > 0 {
        turn += 1.0;
        for (host, entry) in (0..).zip(&mut entries) {
            if free == 0 {
                break;
            }
            // One of the most weight has every turn, one of a third of it every third.
            if turn * entry.share < entry.target {
                continue;
            }
            entry.target += most;
            // The size is a prime: sooner or later this comes by every place.
            loop {
                let at = (entry.offset + entry.skip * entry.next) % size;
                entry.next += 1;
                if let Some(place @ &mut FREE) = table.get_mut(at as usize) {
                    *place = host;
                    free -= 1;
                    break;
                }
            }
        }
    }
    table
}

/// XXH64.
pub fn xx_hash(bytes: &[u8], seed: u64) -> u64 {
    XxHash64::oneshot(seed, bytes)
}

/// MurmurHash2, 64-bit version for little-endian words: that of libstdc++.
fn murmur_hash2(bytes: &[u8], seed: u64) -> u64 {
    const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
    let shift_mix = |v: u64| v ^ (v >> 47);
    let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let word = word.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        let mixed = shift_mix(word.wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
        hash = (hash ^ mixed).wrapping_mul(MULTIPLIER);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let rest = rest.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        hash = (hash ^ rest).wrapping_mul(MULTIPLIER);
    }
    shift_mix(shift_mix(hash).wrapping_mul(MULTIPLIER))
}

#[cfg(test)]
mod tests;

//! All maps. Names, keys and values are `mesh_common`'s.

use core::arch::asm;

use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, map},
    helpers::{bpf_map_lookup_elem, bpf_sk_release},
    maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SockHash, lpm_trie::Key},
};
use mesh_common::{
    abi::capacity,
    address::Address,
    decide::Tables,
    key::{AddressKey, ConnectionKey, ListenerKey, PortKey, ServiceKey, SpliceKey, TupleKey},
    value::{Asked, Authorized, Config, OriginalDestination, Owner, PodEntry, Service, Splice},
    verdict::Verdict,
};

#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
pub static PODS: HashMap<u64, PodEntry> = HashMap::with_max_entries(capacity::PODS, 0);
#[map]
pub static ADDRESSES: HashMap<AddressKey, u32> =
    HashMap::with_max_entries(capacity::ADDRESSES, NO_PREALLOC);
#[map]
pub static OUTBOUND_PORTS: HashMap<PortKey, u32> =
    HashMap::with_max_entries(capacity::EXCLUDED_PORTS, NO_PREALLOC);
#[map]
pub static OUTBOUND_CIDRS: LpmTrie<AddressKey, u32> =
    LpmTrie::with_max_entries(capacity::EXCLUDED_CIDRS, NO_PREALLOC);
#[map]
pub static INBOUND_PORTS: HashMap<PortKey, u32> =
    HashMap::with_max_entries(capacity::EXCLUDED_PORTS, NO_PREALLOC);
#[map]
pub static ORIGINAL_DESTINATIONS: HashMap<ConnectionKey, OriginalDestination> =
    HashMap::with_max_entries(capacity::ORIGINAL_DESTINATIONS, NO_PREALLOC);
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(capacity::LISTENERS, 0);
#[map]
pub static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Verdict::SLOTS, 0);
#[map]
pub static SERVICES: HashMap<ServiceKey, Service> =
    HashMap::with_max_entries(capacity::SERVICES, NO_PREALLOC);
#[map]
pub static AUTHORIZED: HashMap<TupleKey, Authorized> =
    HashMap::with_max_entries(capacity::AUTHORIZED, NO_PREALLOC);
#[map]
pub static AUTHORIZED_COUNT: Array<u64> = Array::with_max_entries(1, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(capacity::EVENT_BYTES, 0);
/// Two sockets for each connection.
#[map]
pub static SPLICED: SockHash<SpliceKey> = SockHash::with_max_entries(capacity::SPLICED, 0);
#[btf_map]
pub static SPLICE: SkStorage<Splice> = SkStorage::new();
#[btf_map]
pub static ASKED: SkStorage<Asked> = SkStorage::new();
#[btf_map]
pub static VOUCHED: SkStorage<u32> = SkStorage::new();

/// `BPF_F_NO_PREALLOC`: entries are allocated as they come, an empty map is small.
const NO_PREALLOC: u32 = 1;

/// Adds one to the verdict's counter.
#[inline(always)]
pub fn count(verdict: Verdict) {
    if let Some(counter) = VERDICTS.get_ptr_mut(verdict as u32) {
        // SAFETY: the pointer is into this CPU's slot of a live map; programs of
        // these types are not preempted by each other on one slot in a way that
        // matters to a counter.
        unsafe { *counter += 1 };
    }
}

/// Whether the agent asked for logs.
#[inline(always)]
pub fn log_enabled() -> bool {
    CONFIG.get(0).is_some_and(|config| config.log != 0)
}

/// Counts live connections of the kernel path.
#[inline(always)]
pub fn count_authorized(change: i64) {
    if let Some(counter) = AUTHORIZED_COUNT.get_ptr_mut(0) {
        // `core` has no atomic addition for this target.
        // SAFETY: an aligned word of a live map, shared by all CPUs.
        unsafe {
            asm!("lock *(u64 *)({counter} + 0) += {change}", counter = in(reg) counter, change = in(reg) change);
        }
    }
}

/// Whether one more connection may take the kernel path.
#[inline(always)]
pub fn has_room() -> bool {
    let max = CONFIG.get(0).map_or(0, |config| config.kernel_path_max);
    AUTHORIZED_COUNT.get(0).is_some_and(|count| *count < u64::from(max))
}

/// Whether the agent listens there. The kernel takes a socket out of the map when
/// it is closed, with its owner's death if need be.
#[inline(always)]
pub fn is_listening(key: &ListenerKey) -> bool {
    let map = core::ptr::addr_of!(LISTENERS).cast_mut().cast();
    // SAFETY: a map and a key of its size; the reference is given back at once.
    unsafe {
        let sk = bpf_map_lookup_elem(map, core::ptr::from_ref(key).cast());
        if sk.is_null() {
            return false;
        }
        bpf_sk_release(sk);
    }
    true
}

/// The maps as the decisions see them.
pub struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn enrolled(&self, netns_cookie: u64) -> bool {
        PODS.get_ptr(&netns_cookie).is_some()
    }

    #[inline(always)]
    fn owner(&self, netns_cookie: u64, address: &Address) -> Owner {
        let key = AddressKey { netns_cookie, address: *address };
        // SAFETY: entries are only replaced whole, by the agent, at enrolment.
        match unsafe { ADDRESSES.get(&key) } {
            Some(1) => Owner::Pod,
            Some(2) => Owner::Node,
            _ => Owner::Other,
        }
    }

    #[inline(always)]
    fn outbound_port_excluded(&self, netns_cookie: u64, port: u16) -> bool {
        OUTBOUND_PORTS.get_ptr(&PortKey::new(netns_cookie, port)).is_some()
    }

    #[inline(always)]
    fn outbound_address_excluded(&self, netns_cookie: u64, address: &Address) -> bool {
        let key = Key::new(AddressKey::BITS, AddressKey { netns_cookie, address: *address });
        OUTBOUND_CIDRS.get(&key).is_some()
    }

    #[inline(always)]
    fn inbound_port_excluded(&self, netns_cookie: u64, port: u16) -> bool {
        INBOUND_PORTS.get_ptr(&PortKey::new(netns_cookie, port)).is_some()
    }
}

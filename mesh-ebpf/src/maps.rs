//! All maps. Names, keys and values are `mesh_common`'s.

use core::{arch::asm, ptr};

use aya_ebpf::{
    bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    btf_maps::SkStorage,
    helpers::{
        bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release, generated::bpf_sk_storage_get,
    },
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockHash, lpm_trie::Key},
    programs::SockAddrContext,
};
use mesh_common::{
    abi::capacity,
    address::Address,
    decide::Tables,
    key::{
        AddressKey, ConnectionKey, ListenerKey, ListenerKind, PortKey, ServiceKey, SpliceKey,
        TupleKey,
    },
    value::{
        Asked, Authorized, Config, OriginalDestination, Outside, Owner, Passed, PodEntry, Probe,
        Service, Splice,
    },
    verdict::Verdict,
};

use crate::ctx;

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
pub static ORIGINAL_DESTINATIONS: LruHashMap<ConnectionKey, OriginalDestination> =
    LruHashMap::with_max_entries(capacity::ORIGINAL_DESTINATIONS, 0);
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
pub static ALIVE_UNTIL: Array<u64> = Array::with_max_entries(1, 0);
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(capacity::EVENT_BYTES, 0);
/// Two sockets for each connection.
#[map]
pub static SPLICED: SockHash<SpliceKey> = SockHash::with_max_entries(capacity::SPLICED, 0);
#[map]
pub static LEGS: HashMap<TupleKey, u64> = HashMap::with_max_entries(capacity::SPLICED, NO_PREALLOC);
#[map]
pub static GRANTS: HashMap<SpliceKey, u64> =
    HashMap::with_max_entries(capacity::SPLICED, NO_PREALLOC);
#[btf_map]
pub static SPLICE: SkStorage<Splice> = SkStorage::new();
#[btf_map]
pub static ASKED: SkStorage<Asked> = SkStorage::new();
#[btf_map]
pub static VOUCHED: InheritedStorage = InheritedStorage::new();
#[btf_map]
pub static PASSED: SkStorage<Passed> = SkStorage::new();
#[map]
pub static PROBERS: HashMap<u64, u32> = HashMap::with_max_entries(capacity::PROBERS, NO_PREALLOC);
#[map]
pub static POD_ADDRESSES: HashMap<Address, u64> =
    HashMap::with_max_entries(capacity::ADDRESSES, NO_PREALLOC);
#[map]
pub static PROBES: HashMap<TupleKey, Probe> =
    HashMap::with_max_entries(capacity::PROBES, NO_PREALLOC);
#[map]
pub static OUTSIDES: HashMap<Address, Outside> =
    HashMap::with_max_entries(capacity::ADDRESSES, NO_PREALLOC);

/// Socket storage that accepted connections take over from their listener. Laid out as
/// the BTF of a map wants it; the pointers are never followed.
#[repr(C)]
pub struct InheritedStorage {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const u32,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the kernel's map, not these pointers, is what programs share.
unsafe impl Sync for InheritedStorage {}

impl InheritedStorage {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// What the socket of a sock_addr program has; null where it has nothing.
    ///
    /// # Safety
    /// The context must be the program's own.
    #[inline(always)]
    pub unsafe fn get(&self, ctx: &SockAddrContext) -> *const u32 {
        let sk = ctx::socket(ctx);
        // SAFETY: a map of socket storage and the context's socket; nothing is created.
        unsafe {
            bpf_sk_storage_get(ptr::from_ref(self).cast_mut().cast(), sk.cast(), ptr::null_mut(), 0)
        }
        .cast()
    }
}

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

/// Whether the operator wants the guard to drop what is not TCP.
#[inline(always)]
pub fn drops_non_tcp() -> bool {
    CONFIG.get(0).is_some_and(|config| config.drop_non_tcp != 0)
}

/// What the agent has said of a pod, if it is enrolled.
#[inline(always)]
pub fn pod_entry(netns_cookie: u64) -> Option<&'static PodEntry> {
    // SAFETY: entries are only replaced whole; the kernel keeps what was looked up
    // until the program ends.
    unsafe { PODS.get(&netns_cookie) }
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
    // The agent's own count may miss what ended meanwhile: until the next, it is negative.
    AUTHORIZED_COUNT.get(0).is_some_and(|count| (*count as i64) < i64::from(max))
}

/// Whether the agent has given a sign of life lately. One that is stopped, and not dead,
/// does not, and keeps its listeners.
#[inline(always)]
pub fn is_alive() -> bool {
    // SAFETY: takes no argument.
    ALIVE_UNTIL.get(0).is_some_and(|until| unsafe { bpf_ktime_get_ns() } < *until)
}

/// Whether there is an agent that serves the pod.
#[inline(always)]
pub fn is_served(netns_cookie: u64) -> bool {
    is_listening(&ListenerKey::new(netns_cookie, ListenerKind::Inbound, false)) && is_alive()
}

/// Whether the agent listens there. The kernel takes a socket out of the map when
/// it is closed, with its owner's death if need be.
#[inline(always)]
fn is_listening(key: &ListenerKey) -> bool {
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

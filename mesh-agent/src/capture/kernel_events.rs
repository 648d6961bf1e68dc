//! The kernel's reports of connections that it took from pod to pod, and what they mean.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use mesh_common::{
    address::Address,
    key::TupleKey,
    value::{Authorized, Event, fin},
};
use tokio::io::unix::AsyncFd;

use super::{
    maps::monotonic_ns,
    node::{Capture, Slot, State},
};
use crate::model::{
    kernel_path::{KernelConnection, KernelEvent, KernelPeer, KernelTraffic},
    workload::WorkloadUid,
};

/// Short connections come in numbers: their events are taken together.
const GATHER: Duration = Duration::from_millis(10);

/// The kernel's reports, in order.
#[derive(Debug)]
pub struct KernelEvents(AsyncFd<Ring>);

struct Ring {
    events: RingBuf<MapData>,
    /// How many the last look found: as many are likely to follow.
    found: usize,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl std::os::fd::AsRawFd for Ring {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.events.as_raw_fd()
    }
}

impl KernelEvents {
    /// Waits for events, a little longer for those that follow at once, and returns
    /// all there are. Cancel safe.
    ///
    /// # Errors
    /// What epoll(7) said.
    pub async fn next(&mut self, capture: &Capture) -> io::Result<Vec<KernelEvent>> {
        drop(self.0.readable().await?);
        tokio::time::sleep(GATHER).await;
        let mut guard = self.0.readable_mut().await?;
        let events = guard.get_inner_mut().drain(capture);
        guard.clear_ready();
        Ok(events)
    }

    /// Returns what there is without waiting.
    pub fn drain(&mut self, capture: &Capture) -> Vec<KernelEvent> {
        self.0.get_mut().drain(capture)
    }
}

impl Ring {
    fn drain(&mut self, capture: &Capture) -> Vec<KernelEvent> {
        let Some(first) = self.events.next().map(|item| parse(&item)) else { return Vec::new() };
        let mut reports = Vec::with_capacity(self.found + self.found / 4);
        let state = capture.state();
        let slots = state.by_cookie();
        reports.extend(first.map(|event| report(&event, &slots)));
        while let Some(item) = self.events.next() {
            reports.extend(parse(&item).map(|event| report(&event, &slots)));
        }
        self.found = reports.len();
        reports
    }
}

/// One event as the program wrote it; `None` where it is not of the right size.
fn parse(bytes: &[u8]) -> Option<Event> {
    let mut words = bytes.chunks_exact(4).map(|w| u32::from_ne_bytes([w[0], w[1], w[2], w[3]]));
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    let mut u32 = || words.next().unwrap_or_default();
    let (kind, old_state) = (u32(), u32());
    let mut u64 = || {
        let (first, second) = (u32().to_ne_bytes(), u32().to_ne_bytes());
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&first);
        bytes[4..].copy_from_slice(&second);
        u64::from_ne_bytes(bytes)
    };
    let halves = |n: u64| {
        let b = n.to_ne_bytes();
        [u32::from_ne_bytes([b[0], b[1], b[2], b[3]]), u32::from_ne_bytes([b[4], b[5], b[6], b[7]])]
    };
    let address = |a: u64, b: u64| {
        let ([w0, w1], [w2, w3]) = (halves(a), halves(b));
        Address([w0, w1, w2, w3])
    };
    let netns_cookie = u64();
    let source = address(u64(), u64());
    let destination = address(u64(), u64());
    let [source_port, destination_port] = halves(u64());
    let tuple = TupleKey { netns_cookie, source, destination, source_port, destination_port };
    let asked = address(u64(), u64());
    let [asked_port, fin] = halves(u64());
    let connection = Authorized {
        asked,
        asked_port,
        fin,
        source_cookie: u64(),
        socket_cookie: u64(),
        opened_ns: u64(),
        established_ns: u64(),
        received_at_fin: u64(),
        seen: 0,
        splice: 0,
        spliced_up: 0,
        spliced_down: 0,
        spliced_ns: 0,
    };
    let [seen, splice] = halves(u64());
    let (spliced_up, spliced_down, spliced_ns) = (u64(), u64(), u64());
    let (at_ns, bytes_acked, bytes_received) = (u64(), u64(), u64());
    let [srtt_us_times_8, retransmits] = halves(u64());
    Some(Event {
        kind,
        old_state,
        tuple,
        connection: Authorized { seen, splice, spliced_up, spliced_down, spliced_ns, ..connection },
        at_ns,
        bytes_acked,
        bytes_received,
        srtt_us_times_8,
        retransmits,
    })
}

fn report(event: &Event, slots: &Slots<'_>) -> KernelEvent {
    let connection = describe(&event.tuple, &event.connection, slots);
    if event.kind == Event::ESTABLISHED {
        return KernelEvent::Established(connection);
    }
    let bit = |flag: u32| u64::from(event.connection.fin & flag != 0);
    let syn = u64::from(connection.established);
    let mut traffic = KernelTraffic {
        received_bytes: event.bytes_acked.saturating_sub(syn + bit(fin::ACKNOWLEDGED)),
        sent_bytes: event.bytes_received.saturating_sub(bit(fin::RECEIVED)),
        round_trip: Duration::from_nanos(u64::from(event.srtt_us_times_8) * 125),
        retransmits: event.retransmits,
        idle: Duration::ZERO,
    };
    add_spliced(&mut traffic, &event.connection, event.at_ns);
    let aborted = event.connection.fin != fin::RECEIVED | fin::ACKNOWLEDGED
        && !matches!(event.old_state, FIN_WAIT2 | LAST_ACK | CLOSING);
    KernelEvent::Closed { connection, traffic, aborted }
}

/// What went past TCP, up to `now` of `CLOCK_MONOTONIC`.
pub(super) fn add_spliced(traffic: &mut KernelTraffic, connection: &Authorized, now: u64) {
    if connection.spliced_ns == 0 {
        return;
    }
    traffic.received_bytes += connection.spliced_up;
    traffic.sent_bytes += connection.spliced_down;
    let idle = Duration::from_nanos(now.saturating_sub(connection.spliced_ns));
    traffic.idle = traffic.idle.min(idle);
}

const FIN_WAIT2: u32 = 5;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

pub(super) fn describe(
    tuple: &TupleKey,
    connection: &Authorized,
    slots: &Slots<'_>,
) -> KernelConnection {
    let socket = |address: Address, port: u32| {
        SocketAddr::new(IpAddr::from(address), u16::try_from(port).unwrap_or_default())
    };
    let age = monotonic_ns().saturating_sub(connection.opened_ns);
    KernelConnection {
        socket_cookie: connection.socket_cookie,
        source_netns: connection.source_cookie,
        destination_netns: tuple.netns_cookie,
        source_pod: slots.peer(connection.source_cookie),
        destination_pod: slots.peer(tuple.netns_cookie),
        source: socket(tuple.source, tuple.source_port),
        original_destination: socket(connection.asked, connection.asked_port),
        destination: socket(tuple.destination, tuple.destination_port),
        age: Duration::from_nanos(age),
        on_path: slots.is_on_kernel_path(connection.source_cookie, tuple.source.into())
            && slots.is_on_kernel_path(tuple.netns_cookie, tuple.destination.into()),
        established: connection.established_ns != 0,
        seen: connection.seen != 0,
    }
}

/// The pods that are served, by the cookies of their namespaces: to tell of thousands of
/// connections at once, a node's pods are gone through only once.
pub(super) struct Slots<'a> {
    state: &'a State,
    by_cookie: HashMap<u64, (&'a WorkloadUid, &'a Slot)>,
}

impl State {
    pub(super) fn by_cookie(&self) -> Slots<'_> {
        let served = self.pods.iter().filter(|(_, slot)| slot.record.is_some());
        let by_cookie = served.map(|(uid, slot)| (slot.cookie, (uid, slot))).collect();
        Slots { state: self, by_cookie }
    }
}

impl Slots<'_> {
    fn peer(&self, cookie: u64) -> KernelPeer {
        match self.by_cookie.get(&cookie) {
            Some((uid, _)) => KernelPeer::Enrolled((*uid).clone()),
            None if self.state.maps.is_captured(cookie) => KernelPeer::Waiting,
            None => KernelPeer::Gone,
        }
    }

    /// Whether packets of the kernel path may go to `address` of the pod of `cookie`; of one
    /// that is not served yet that is not known.
    fn is_on_kernel_path(&self, cookie: u64, address: IpAddr) -> bool {
        let slot = self.by_cookie.get(&cookie);
        !self.state.guarded
            || slot
                .is_none_or(|(_, slot)| slot.road.as_ref().is_ok_and(|road| road.reaches(address)))
    }
}

impl Capture {
    /// The kernel's reports. Can be taken once; the caller is in a tokio runtime.
    ///
    /// # Errors
    /// What epoll(7) said.
    pub fn kernel_events(&self) -> io::Result<Option<KernelEvents>> {
        let ring = self.state().kernel.events.take();
        let Some(ring) = ring else { return Ok(None) };
        // SAFETY: the descriptor is the map's own, which the ring holds for as long as
        // it lives, and nothing replaces it.
        let ring = unsafe { AsyncFd::register(Ring { events: ring, found: 0 }) };
        Ok(Some(KernelEvents(ring.map_err(io::Error::from)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_as_it_was_written() {
        let words: Vec<u8> = (1..=46_u32).flat_map(u32::to_ne_bytes).collect();
        let event = parse(&words).expect("an event");
        assert_eq!((event.kind, event.old_state), (1, 2));
        assert_eq!(event.tuple.source, Address([5, 6, 7, 8]));
        assert_eq!((event.tuple.source_port, event.tuple.destination_port), (13, 14));
        assert_eq!(event.connection.asked, Address([15, 16, 17, 18]));
        assert_eq!((event.connection.asked_port, event.connection.fin), (19, 20));
        assert_eq!(event.connection.socket_cookie.to_ne_bytes()[..4], 23_u32.to_ne_bytes());
        assert_eq!(event.connection.seen, 31);
        assert_eq!(event.connection.spliced_down.to_ne_bytes()[..4], 35_u32.to_ne_bytes());
        assert_eq!(event.bytes_acked.to_ne_bytes()[..4], 41_u32.to_ne_bytes());
        assert_eq!((event.srtt_us_times_8, event.retransmits), (45, 46));
        assert_eq!(parse(&words[1..]), None);
        assert_eq!(parse(&[]), None);
    }
}

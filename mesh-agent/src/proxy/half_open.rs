//! How many clients may be on their way in at once, and how much may be kept of what they say.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

/// How many of one listener's, or one pod's.
const CLIENTS_MAX: usize = 4096;

/// What is kept of all that they have said.
const SAID_MAX_BYTES: usize = 32 << 20;

/// Who has said no more than this is none of those who take the room of others.
const LITTLE_BYTES: usize = 4096;

/// Why a client has to go.
pub(super) const CROWDED_OUT: &str = "others were on their way in, and it was for the longest";

/// Clients of one gateway listener that have not finished its listener filters and handshake,
/// or connections of one pod whose first bytes are waited for. Where there is no room the one
/// that began longest ago makes some: whoever opens connections and says nothing keeps nobody
/// out who does speak. Where there is none for what they say, it is the first of those who
/// have said much.
#[derive(Debug)]
pub struct HalfOpen {
    clients_max: usize,
    said_max_bytes: usize,
    on_their_way: Mutex<OnTheirWay>,
}

#[derive(Debug, Default)]
struct OnTheirWay {
    next: u64,
    said_bytes: usize,
    /// By their number: who came first is first.
    clients: BTreeMap<u64, Client>,
}

#[derive(Debug)]
struct Client {
    said_bytes: usize,
    crowded_out: CancellationToken,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Entering<'a> {
    half_open: &'a HalfOpen,
    number: u64,
    crowded_out: CancellationToken,
}

impl Default for HalfOpen {
    fn default() -> Self {
        Self::new(CLIENTS_MAX, SAID_MAX_BYTES)
    }
}

impl HalfOpen {
    fn new(clients_max: usize, said_max_bytes: usize) -> Self {
        Self { clients_max, said_max_bytes, on_their_way: Mutex::default() }
    }

    fn on_their_way(&self) -> MutexGuard<'_, OnTheirWay> {
        self.on_their_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another one begins.
    pub(super) fn enter(&self) -> Entering<'_> {
        let crowded_out = CancellationToken::new();
        let client = Client { said_bytes: 0, crowded_out: crowded_out.clone() };
        let mut all = self.on_their_way();
        if all.clients.len() >= self.clients_max
            && let Some(first) = all.clients.keys().next().copied()
        {
            all.crowd_out(first);
        }
        let number = all.next;
        all.next += 1;
        all.clients.insert(number, client);
        Entering { half_open: self, number, crowded_out }
    }
}

impl OnTheirWay {
    fn leaves(&mut self, number: u64) -> Option<Client> {
        let client = self.clients.remove(&number)?;
        self.said_bytes -= client.said_bytes;
        Some(client)
    }

    fn crowd_out(&mut self, number: u64) {
        if let Some(client) = self.leaves(number) {
            client.crowded_out.cancel();
        }
    }
}

impl Entering<'_> {
    /// So much is kept of what it has said, from now on.
    pub(super) fn keeps(&self, bytes: usize) {
        let mut all = self.half_open.on_their_way();
        let Some(client) = all.clients.get_mut(&self.number) else { return };
        let before = std::mem::replace(&mut client.said_bytes, bytes);
        all.said_bytes = all.said_bytes - before + bytes;
        while all.said_bytes > self.half_open.said_max_bytes {
            let mut much = all.clients.iter().filter(|(_, of)| of.said_bytes > LITTLE_BYTES);
            let Some((number, _)) = much.next() else { return };
            let number = *number;
            all.crowd_out(number);
        }
    }

    /// Resolves when it has to go.
    pub(super) fn crowded_out(&self) -> WaitForCancellationFuture<'_> {
        self.crowded_out.cancelled()
    }
}

impl Drop for Entering<'_> {
    fn drop(&mut self) {
        self.half_open.on_their_way().leaves(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::{Entering, HalfOpen, LITTLE_BYTES};

    fn out(of: &Entering<'_>) -> bool {
        of.crowded_out.is_cancelled()
    }

    #[test]
    fn the_one_that_began_first_makes_room() {
        let half_open = HalfOpen::new(2, 0);
        let [first, second] = [half_open.enter(), half_open.enter()];
        assert!(!out(&first) && !out(&second));
        let third = half_open.enter();
        assert!(out(&first) && !out(&second) && !out(&third));
        let _fourth = half_open.enter();
        assert!(out(&second) && !out(&third));
    }

    #[test]
    fn who_is_in_takes_no_room() {
        let half_open = HalfOpen::new(2, 0);
        let slow = half_open.enter();
        for _ in 0..100 {
            drop(half_open.enter());
        }
        let _other = half_open.enter();
        assert!(!out(&slow));
        let _third = half_open.enter();
        assert!(out(&slow));
        drop(slow);
        assert_eq!(half_open.on_their_way().clients.len(), 2);
    }

    #[test]
    fn who_says_much_makes_room_for_what_others_say() {
        let much = LITTLE_BYTES * 2;
        let half_open = HalfOpen::new(100, much * 2);
        let little = half_open.enter();
        little.keeps(LITTLE_BYTES);
        let [first, second] = [half_open.enter(), half_open.enter()];
        first.keeps(much);
        assert!(!out(&first));
        second.keeps(much);
        assert!(out(&first) && !out(&second) && !out(&little));
        // Of one that is out nothing is kept.
        first.keeps(much * 100);
        assert!(!out(&second));
        drop(second);
        let third = half_open.enter();
        third.keeps(much);
        assert!(!out(&third));
        third.keeps(much * 3);
        assert!(out(&third) && !out(&little));
        assert_eq!(half_open.on_their_way().said_bytes, LITTLE_BYTES);
    }
}

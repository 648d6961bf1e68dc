//! How many clients may be on their way in at once.

use std::sync::{
    Mutex, OnceLock, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use tokio_util::sync::CancellationToken;

/// Slots that are made together, once one of them is needed: most of the listeners that a
/// configuration may have see few clients.
const TOGETHER: usize = 64;

type Slots = Box<[Mutex<Option<CancellationToken>>]>;

/// Clients of one listener that have not finished its listener filters and handshake.
/// Where there is no room the one that began longest ago makes some: whoever opens
/// connections and says nothing keeps nobody out who does speak.
#[derive(Debug)]
pub struct HalfOpen {
    room: usize,
    slots: Box<[OnceLock<Slots>]>,
    next: AtomicUsize,
}

impl HalfOpen {
    /// For as many as `room`.
    pub fn new(room: usize) -> Self {
        let room = room.max(1);
        let slots = (0..room.div_ceil(TOGETHER)).map(|_| OnceLock::new()).collect();
        Self { room, slots, next: AtomicUsize::new(0) }
    }

    /// Another one begins: it ends when the token is cancelled, if it is still on its way.
    pub(super) fn enter(&self) -> CancellationToken {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.room;
        let together = self.slots[at / TOGETHER]
            .get_or_init(|| (0..TOGETHER).map(|_| Mutex::default()).collect());
        let token = CancellationToken::new();
        let mut slot = together[at % TOGETHER].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = slot.replace(token.clone()) {
            before.cancel();
        }
        token
    }
}

#[cfg(test)]
mod tests {
    use super::{HalfOpen, TOGETHER};

    #[test]
    fn the_one_that_began_first_makes_room() {
        let half_open = HalfOpen::new(2);
        let [first, second] = [half_open.enter(), half_open.enter()];
        assert!(!first.is_cancelled() && !second.is_cancelled());
        let third = half_open.enter();
        assert!(first.is_cancelled() && !second.is_cancelled() && !third.is_cancelled());
        let _fourth = half_open.enter();
        assert!(second.is_cancelled() && !third.is_cancelled());
    }

    #[test]
    fn room_is_made_as_clients_come_and_not_more_than_that() {
        let half_open = HalfOpen::new(TOGETHER + 1);
        let made = || half_open.slots.iter().filter(|slots| slots.get().is_some()).count();
        assert_eq!(made(), 0, "a listener without clients");
        let first = half_open.enter();
        assert_eq!(made(), 1);
        let others: Vec<_> = (0..TOGETHER).map(|_| half_open.enter()).collect();
        assert_eq!(made(), 2);
        assert!(!first.is_cancelled());
        let _one_too_many = half_open.enter();
        assert!(first.is_cancelled() && !others[0].is_cancelled());
        let _next = half_open.enter();
        assert!(others[0].is_cancelled() && !others[1].is_cancelled());
    }
}

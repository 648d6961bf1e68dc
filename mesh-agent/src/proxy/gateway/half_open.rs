//! How many clients may be on their way in at once.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use tokio_util::sync::CancellationToken;

/// Clients of one listener that have not finished its listener filters and handshake.
/// Where there is no room the one that began longest ago makes some: whoever opens
/// connections and says nothing keeps nobody out who does speak.
#[derive(Debug)]
pub struct HalfOpen {
    slots: Box<[Mutex<CancellationToken>]>,
    next: AtomicUsize,
}

impl HalfOpen {
    /// For as many as `room`.
    pub fn new(room: usize) -> Self {
        let slots = (0..room.max(1)).map(|_| Mutex::default()).collect();
        Self { slots, next: AtomicUsize::new(0) }
    }

    /// Another one begins: it ends when the token is cancelled, if it is still on its way.
    pub(super) fn enter(&self) -> CancellationToken {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len();
        let token = CancellationToken::new();
        let mut slot = self.slots[at].lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *slot, token.clone()).cancel();
        token
    }
}

#[cfg(test)]
mod tests {
    use super::HalfOpen;

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
}

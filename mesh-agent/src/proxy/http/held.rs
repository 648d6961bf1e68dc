//! What is kept of requests' bodies, by pod: none can take what all may have.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::model::{
    budget::{Budget, Charge},
    http_options::{BODIES, BODIES_OF_POD_MAX_BYTES},
};

/// One pod's share.
#[derive(Debug, Clone)]
pub(super) struct Share {
    used_bytes: Arc<AtomicUsize>,
    all: &'static Budget,
}

/// What one body takes of it, given back with it.
#[derive(Debug)]
pub(super) struct Held {
    share: Share,
    charge: Charge,
}

impl Default for Share {
    fn default() -> Self {
        Self { used_bytes: Arc::default(), all: &BODIES }
    }
}

impl Share {
    /// Whether somebody else has it, too.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.used_bytes) > 1
    }

    /// A part of it; `None`: so much is not left.
    pub(super) fn take(&self, bytes: usize) -> Option<Held> {
        let mut held = Held { share: self.clone(), charge: self.all.take(0)? };
        held.set(bytes).then_some(held)
    }
}

impl Held {
    /// Has `held`, of `share`, be for so many bytes; `false`: they are not left.
    pub(super) fn fits(held: &mut Option<Self>, share: &Share, bytes: usize) -> bool {
        match held {
            Some(held) => held.set(bytes),
            None => {
                *held = share.take(bytes);
                held.is_some()
            }
        }
    }

    /// From now on it is for so many bytes; nothing changes, and it is `false`, where they are
    /// not left.
    pub(super) fn set(&mut self, bytes: usize) -> bool {
        let (used, before) = (&self.share.used_bytes, self.charge.bytes());
        if bytes == before {
            return true;
        }
        let changed = |used: usize| {
            let sum = (used - before).checked_add(bytes)?;
            (bytes <= before || sum <= BODIES_OF_POD_MAX_BYTES).then_some(sum)
        };
        if used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, changed).is_err() {
            return false;
        }
        let set = self.charge.set(bytes);
        if !set {
            used.fetch_sub(bytes - before, Ordering::Relaxed);
        }
        set
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.share.used_bytes.fetch_sub(self.charge.bytes(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(all: &'static Budget) -> Share {
        Share { used_bytes: Arc::default(), all }
    }

    #[test]
    fn a_pod_has_no_more_than_its_share_and_gives_it_back() {
        static ALL: Budget = Budget::new("test", 3 * BODIES_OF_POD_MAX_BYTES);
        let (one, other) = (share(&ALL), share(&ALL));
        let mut held = one.take(BODIES_OF_POD_MAX_BYTES - 1).unwrap();
        assert!(one.take(2).is_none());
        assert!(held.set(BODIES_OF_POD_MAX_BYTES) && !held.set(BODIES_OF_POD_MAX_BYTES + 1));
        assert!(one.take(1).is_none());
        let of_other = other.take(1).unwrap();
        assert_eq!(ALL.used_bytes(), BODIES_OF_POD_MAX_BYTES + 1);
        assert!(held.set(5));
        assert_eq!(one.used_bytes.load(Ordering::Relaxed), 5);
        drop((held, of_other));
        assert_eq!((one.used_bytes.load(Ordering::Relaxed), ALL.used_bytes()), (0, 0));
    }

    #[test]
    fn all_pods_have_no_more_than_there_is() {
        static ALL: Budget = Budget::new("test", 10);
        let (one, other) = (share(&ALL), share(&ALL));
        let mut held = one.take(6).unwrap();
        assert!(other.take(5).is_none() && !held.set(11));
        assert_eq!(other.used_bytes.load(Ordering::Relaxed), 0);
        assert_eq!(one.used_bytes.load(Ordering::Relaxed), 6);
        assert!(other.take(4).is_some());
    }
}

//! What each thread of the data path has to itself.
//!
//! A connection is served by one thread from accept to end, with every task it needs.
//! What such tasks share with others of their thread only, pools of upstream connections
//! above all, wakes nobody elsewhere: a stream and the connection that carries it are
//! never on two CPUs.

use std::cell::Cell;

thread_local! {
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Says that this thread is worker `index`, from 0, for as long as it runs.
pub fn enter(index: usize) {
    CURRENT.set(Some(index));
}

/// Which worker this thread is; `None` elsewhere: health checks, tests.
pub fn current() -> Option<usize> {
    CURRENT.get()
}

/// One value for each worker, and one for all other threads.
#[derive(Debug)]
pub(super) struct PerWorker<T> {
    values: Box<[T]>,
}

impl<T> PerWorker<T> {
    /// For `workers` workers; any more share the last one's.
    pub(super) fn new(workers: usize, mut make: impl FnMut() -> T) -> Self {
        Self { values: (0..=workers).map(|_| make()).collect() }
    }

    /// The current thread's.
    pub(super) fn own(&self) -> &T {
        let index = current().map_or(0, |worker| worker + 1);
        &self.values[index.min(self.values.len() - 1)]
    }

    /// Everybody's.
    pub(super) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.values.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, thread};

    use super::{PerWorker, enter};

    #[test]
    fn threads_meet_only_where_they_are_no_workers() {
        let next = AtomicUsize::new(0);
        let values = PerWorker::new(2, || next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        let of = |worker: Option<usize>| {
            thread::scope(|scope| {
                let own = scope.spawn(|| {
                    worker.into_iter().for_each(enter);
                    *values.own()
                });
                own.join().unwrap()
            })
        };
        assert_eq!([None, Some(0), Some(1), Some(7), None].map(of), [0, 1, 2, 2, 0]);
        assert_eq!(values.iter().count(), 3);
    }
}

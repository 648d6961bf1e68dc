//! The threads that serve connections.
//!
//! Each has a runtime of its own, and no task moves between them: with one scheduler for
//! all of them, every other request woke a second thread to help, which cost more than
//! it helped. A connection is given to the thread with the fewest when it is accepted,
//! and stays there to its end, as in Envoy.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    net::TcpStream,
    runtime::{Builder, Handle},
    sync::Semaphore,
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Agent;
use crate::{
    model::{captured::Pod, workload::WorkloadUid},
    transport::worker,
};

/// Connections of one pod that the agent serves at once, of each kind; more wait in
/// the listener's backlog, so that one pod can't take every descriptor.
const MAX_CONNECTIONS_PER_POD: usize = 16_384;

/// How long to wait after a failed accept: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All of them.
#[derive(Debug)]
pub(super) struct Workers {
    workers: Vec<Worker>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// Accepted connections that it serves.
    serving: Arc<AtomicUsize>,
}

/// What keeps them running.
#[derive(Debug)]
pub(super) struct Threads {
    ended: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

/// Counts one connection for as long as it is served.
#[derive(Debug)]
struct Serving(Arc<AtomicUsize>);

impl Serving {
    fn new(serving: &Arc<AtomicUsize>) -> Self {
        serving.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(serving))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads, at least one. What still runs in one when it is told to
    /// end has `grace`.
    ///
    /// # Errors
    /// There are no more threads or descriptors.
    pub(super) fn start(count: usize, grace: Duration) -> anyhow::Result<(Arc<Self>, Threads)> {
        let ended = CancellationToken::new();
        let (mut workers, mut threads) = (Vec::new(), Vec::new());
        for index in 0..count.max(1) {
            let (worker, thread) = Worker::start(index, grace, ended.clone())
                .with_context(|| format!("thread {index} of the data path"))?;
            workers.push(worker);
            threads.push(thread);
        }
        let workers = Arc::new(Self { workers, next: AtomicUsize::new(0) });
        Ok((workers, Threads { ended, threads }))
    }

    /// One after the other, for what is there as long as a pod.
    pub(super) fn in_turn(&self) -> &Handle {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        &self.workers[next % self.workers.len()].runtime
    }

    /// Serves a connection that the current thread has accepted: here, unless another
    /// serves fewer.
    pub(super) fn serve<S>(
        &self,
        tasks: &TaskTracker,
        stream: TcpStream,
        serve: impl FnOnce(TcpStream) -> S + Send + 'static,
    ) -> io::Result<()>
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let load = |worker: &Worker| worker.serving.load(Ordering::Relaxed);
        let own = worker::current().and_then(|index| self.workers.get(index));
        let least = self.workers.iter().min_by_key(|worker| load(worker));
        match (own, least) {
            (Some(own), Some(least)) if load(least) < load(own) => {
                let serving = Serving::new(&least.serving);
                // Out of this thread's poll set, into the other's.
                let stream = stream.into_std()?;
                let served = async move {
                    match TcpStream::from_std(stream) {
                        Ok(stream) => serve(stream).await,
                        Err(error) => tracing::warn!(%error, "a connection can't be served"),
                    }
                    drop(serving);
                };
                tasks.spawn_on(served, &least.runtime);
            }
            (own, _) => {
                let serving = own.map(|own| Serving::new(&own.serving));
                let served = serve(stream);
                tasks.spawn(async move {
                    served.await;
                    drop(serving);
                });
            }
        }
        Ok(())
    }
}

impl Threads {
    /// Ends every thread; what has not ended within the grace is dropped.
    pub(super) fn end(self) {
        self.ended.cancel();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the data path panicked");
            }
        }
    }
}

impl Worker {
    fn start(
        index: usize,
        grace: Duration,
        ended: CancellationToken,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let runtime =
            Builder::new_current_thread().thread_name("mesh-data-aside").enable_all().build()?;
        let worker = Self { runtime: runtime.handle().clone(), serving: Arc::default() };
        let run = move || {
            worker::enter(index);
            runtime.block_on(ended.cancelled());
            runtime.shutdown_timeout(grace);
        };
        let thread = std::thread::Builder::new().name(format!("mesh-data-{index}")).spawn(run)?;
        Ok((worker, thread))
    }
}

/// What accepts connections of one kind.
pub(super) struct Accepting {
    uid: WorkloadUid,
    until: CancellationToken,
    workers: Arc<Workers>,
    tasks: TaskTracker,
}

impl Accepting {
    pub(super) fn new(agent: &Agent, pod: &Pod, until: CancellationToken) -> Self {
        let (workers, tasks) = (Arc::clone(&agent.data), agent.dataplane.tasks.clone());
        Self { uid: pod.workload.uid.clone(), until, workers, tasks }
    }

    /// Until it is told to stop. `next` gives a connection and what serves it.
    pub(super) async fn run<A, F, S>(self, next: A)
    where
        A: AsyncFn() -> io::Result<(TcpStream, F)>,
        F: FnOnce(TcpStream) -> S + Send + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS_PER_POD));
        loop {
            let slot = tokio::select! {
                () = self.until.cancelled() => return,
                slot = Arc::clone(&slots).acquire_owned() => slot,
            };
            let Ok(slot) = slot else { return };
            let accepted = tokio::select! {
                () = self.until.cancelled() => return,
                accepted = next() => accepted,
            };
            let served = accepted.and_then(|(stream, serve)| {
                self.workers.serve(&self.tasks, stream, async move |stream| {
                    serve(stream).await;
                    drop(slot);
                })
            });
            if let Err(error) = served {
                tracing::warn!(pod = %self.uid, %error, "a connection was not accepted");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::ErrorKind::UnexpectedEof,
        sync::{Arc, atomic::Ordering, mpsc},
        time::Duration,
    };

    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };
    use tokio_util::task::TaskTracker;

    use super::{Workers, worker};

    #[test]
    fn connections_go_to_whom_has_fewest_and_stay_there() {
        let (workers, threads) = Workers::start(3, Duration::from_secs(1)).unwrap();
        let (served_by, seen) = mpsc::channel();
        let accepting = Arc::clone(&workers);
        let accepted = workers.in_turn().spawn(async move {
            let tasks = TaskTracker::new();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let mut clients = Vec::new();
            for _ in 0..6 {
                clients.push(TcpStream::connect(address).await.unwrap());
                let (stream, _) = listener.accept().await.unwrap();
                let served_by = served_by.clone();
                accepting
                    .serve(&tasks, stream, async move |mut stream| {
                        served_by.send(worker::current().unwrap()).unwrap();
                        assert_eq!(stream.read_u8().await.unwrap_err().kind(), UnexpectedEof);
                    })
                    .unwrap();
            }
            drop(clients);
            tasks.close();
            tasks.wait().await;
        });
        let mut by_worker = [0; 3];
        for _ in 0..6 {
            by_worker[seen.recv_timeout(Duration::from_secs(20)).unwrap()] += 1;
        }
        assert_eq!(by_worker, [2, 2, 2]);
        let waiting = tokio::runtime::Builder::new_current_thread().build().unwrap();
        waiting.block_on(accepted).unwrap();
        let left = workers.workers.iter().map(|worker| worker.serving.load(Ordering::Relaxed));
        assert_eq!(left.sum::<usize>(), 0);
        threads.end();
    }
}

use std::{
    net::SocketAddr,
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

const AHEAD: u64 = 1000;

/// What a test says of the application, and hears from the agent.
#[derive(Debug, Default)]
struct Kernel {
    backlog: AtomicU64,
    looks: AtomicU64,
    granted: AtomicU64,
}

#[derive(Debug)]
struct Spliced(Arc<Kernel>);

impl SplicedLeg for Spliced {
    fn ahead_bytes(&self) -> u64 {
        AHEAD
    }

    fn grant(&mut self, bytes: u64) {
        self.0.granted.store(bytes, Ordering::Relaxed);
    }

    fn backlog(&self, _: BorrowedFd<'_>) -> io::Result<u64> {
        self.0.looks.fetch_add(1, Ordering::Relaxed);
        Ok(self.0.backlog.load(Ordering::Relaxed))
    }
}

async fn leg() -> (Leg, TcpStream, Arc<Kernel>) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let kernel = Arc::<Kernel>::default();
    let account = Account::new(Box::new(Spliced(Arc::clone(&kernel))));
    let leg = Leg { stream, account: Some(Box::new(account)) };
    (leg, listener.accept().await.unwrap().0, kernel)
}

#[tokio::test]
async fn more_is_granted_as_it_is_read() {
    let (mut leg, mut application, kernel) = leg().await;
    application.write_all(&[7; 600]).await.unwrap();
    leg.read_exact(&mut [0; 100]).await.unwrap();
    assert_eq!(kernel.granted.load(Ordering::Relaxed), 0, "too little is read");
    leg.read_exact(&mut [0; 500]).await.unwrap();
    assert_eq!(kernel.granted.load(Ordering::Relaxed), 600 + AHEAD);
    application.write_all(&[7; 64]).await.unwrap();
    for _ in 0..GRANT_READS - 1 {
        leg.read_exact(&mut [0]).await.unwrap();
    }
    assert_eq!(kernel.granted.load(Ordering::Relaxed), 600 + AHEAD, "not often enough");
    leg.read_exact(&mut [0]).await.unwrap();
    assert_eq!(kernel.granted.load(Ordering::Relaxed), 664 + AHEAD, "but in small pieces");
    drop(application);
    assert_eq!(leg.read(&mut [0; 10]).await.unwrap(), 0);
}

#[tokio::test]
async fn nothing_is_sent_to_who_does_not_read() {
    let (mut leg, mut application, kernel) = leg().await;
    let reader = tokio::spawn(async move {
        let mut bytes = Vec::new();
        application.read_to_end(&mut bytes).await.map(|_| bytes)
    });
    kernel.backlog.store(BACKLOG_BYTES, Ordering::Relaxed);
    let data = vec![7; LOOK_BYTES as usize];
    leg.write_all(&data).await.unwrap();
    assert_eq!(kernel.looks.load(Ordering::Relaxed), 0, "so much is free");
    let waits = tokio::time::timeout(Duration::from_millis(50), leg.write_all(b"more")).await;
    assert!(waits.is_err(), "{waits:?}");
    assert!(kernel.looks.load(Ordering::Relaxed) > 1);
    kernel.backlog.store(BACKLOG_BYTES - 1, Ordering::Relaxed);
    leg.write_all(b"more").await.unwrap();
    leg.shutdown().await.unwrap();
    let read = reader.await.unwrap().unwrap();
    assert_eq!((read.len(), &read[read.len() - 4..]), (data.len() + 4, &b"more"[..]));
}

#[tokio::test]
async fn what_the_kernel_has_no_memory_for_is_sent_later() {
    let (mut leg, _application, _kernel) = leg().await;
    let (account, stream) = (leg.account.as_mut().unwrap(), &leg.stream);
    for refused in [libc::ENOMEM, libc::EAGAIN] {
        let tries = AtomicU64::new(0);
        let send = |_: SockRef<'_>| match tries.fetch_add(1, Ordering::Relaxed) {
            0..3 => Err(io::Error::from_raw_os_error(refused)),
            _ => Ok(7),
        };
        let sent = std::future::poll_fn(|cx| account.poll_send(cx, stream, send)).await;
        assert_eq!((sent.unwrap(), tries.into_inner()), (7, 4));
    }
    let gone = |_: SockRef<'_>| Err(io::Error::from_raw_os_error(libc::EPIPE));
    let failed = std::future::poll_fn(|cx| account.poll_send(cx, stream, gone)).await;
    assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test(start_paused = true)]
async fn short_messages_are_memory_too() {
    let (mut leg, _application, kernel) = leg().await;
    // None of them is read, which is few bytes. Until the first look nobody knows.
    let free = LOOK_BYTES / LEAST_BYTES;
    for sent in 0..free + u64::from(BACKLOG_MESSAGES) {
        kernel.backlog.store(sent + 1, Ordering::Relaxed);
        leg.write_all(b"1").await.unwrap();
    }
    let account = leg.account.as_ref().unwrap();
    let before = (account.sent, tokio::time::Instant::now());
    // More come, slowly.
    for _ in 0..3 {
        kernel.backlog.fetch_add(1, Ordering::Relaxed);
        leg.write_all(b"1").await.unwrap();
    }
    let account = leg.account.as_ref().unwrap();
    assert_eq!(account.sent, before.0 + 3);
    assert!(before.1.elapsed() >= LAST_PAUSE * 3, "{:?}", before.1.elapsed());
    // All is read: as many again are free.
    kernel.backlog.store(0, Ordering::Relaxed);
    leg.write_all(b"1").await.unwrap();
    let begun = tokio::time::Instant::now();
    for _ in 1..free {
        leg.write_all(b"1").await.unwrap();
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn splice_2_never_meets_a_spliced_socket() {
    let (leg, application, _kernel) = leg().await;
    assert!(leg.tcp().is_none());
    assert!(Leg::from(application).tcp().is_some());
}

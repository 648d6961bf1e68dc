use std::{
    net::SocketAddr,
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

    fn backlog(&self) -> io::Result<u64> {
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
    leg.read_exact(&mut [0; 400]).await.unwrap();
    assert_eq!(kernel.granted.load(Ordering::Relaxed), 0, "less than half is read");
    leg.read_exact(&mut [0; 200]).await.unwrap();
    assert_eq!(kernel.granted.load(Ordering::Relaxed), 600 + AHEAD);
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
async fn splice_2_never_meets_a_spliced_socket() {
    let (leg, application, _kernel) = leg().await;
    assert!(leg.tcp().is_none());
    assert!(Leg::from(application).tcp().is_some());
}

//! How fast bytes go application → relay → HBONE → relay → application, in one
//! process over loopback, against the same two relays without HBONE.
//!
//! `cargo run --release --example hbone_throughput -- [MiB] [streams] [way]`

use std::{
    env, io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use mesh_agent::{
    model::{
        captured::Pod,
        cluster::Keepalive,
        socket::PodSockets,
        workload::{MtlsMode, Workload, WorkloadUid},
    },
    observe::counters::Counters,
    transport::{
        dial,
        hbone::{
            HbonePool, HbonePoolOptions, HboneServer, HboneServerOptions, HboneTarget, accept_tls,
        },
        relay::relay,
    },
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, pki_types::PrivatePkcs8KeyDer,
    server::WebPkiClientVerifier,
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct PlainSockets;

impl PodSockets for PlainSockets {
    fn tcp(&self, destination: SocketAddr) -> io::Result<Socket> {
        Socket::new(Domain::for_address(destination), Type::STREAM, None)
    }

    fn tcp_from(&self, _: SocketAddr, destination: SocketAddr) -> io::Result<Socket> {
        self.tcp(destination)
    }
}

fn configs() -> Result<(Arc<ServerConfig>, Arc<ClientConfig>)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone())?;
    let roots = Arc::new(roots);
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &ca)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let verifier = WebPkiClientVerifier::builder(Arc::clone(&roots)).build()?;
    let chain = vec![leaf.der().clone()];
    let mut server = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key().into())?;
    let mut client = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key.into())?;
    server.alpn_protocols = vec![b"h2".to_vec()];
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok((Arc::new(server), Arc::new(client)))
}

/// Reads what comes, then says how much it was.
async fn sink(mut stream: TcpStream) -> io::Result<()> {
    let (mut total, mut bytes) = (0u64, vec![0; 128 << 10]);
    loop {
        match stream.read(&mut bytes).await? {
            0 => return stream.write_all(&total.to_be_bytes()).await,
            read => total += read as u64,
        }
    }
}

/// The destination's agent: whatever is asked for, the sink is dialled.
async fn inbound(tcp: TcpStream, tls: Arc<ServerConfig>, sink: SocketAddr) -> Result<()> {
    let stream = accept_tls(tcp, tls, TIMEOUT).await?;
    let mut server = HboneServer::handshake(stream, HboneServerOptions::default()).await?;
    while let Some(request) = server.next().await {
        let downstream = request?.accept()?;
        tokio::spawn(async move {
            let upstream = dial::connect(&PlainSockets, sink, Keepalive::Usual, TIMEOUT).await?;
            let cancel = CancellationToken::new();
            relay(downstream, upstream, None, &Counters::default(), &cancel).await;
            Ok::<_, anyhow::Error>(())
        });
    }
    Ok(())
}

async fn push(address: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let chunk = vec![7u8; 128 << 10];
    for _ in 0..bytes / chunk.len() as u64 {
        stream.write_all(&chunk).await?;
    }
    stream.shutdown().await?;
    anyhow::ensure!(stream.read_u64().await? == bytes, "bytes were lost");
    Ok(())
}

async fn measure(what: &str, address: SocketAddr, mebibytes: u64, streams: u64) -> Result<()> {
    let each = (mebibytes << 20) / streams / (128 << 10) * (128 << 10);
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        tasks.spawn(push(address, each));
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{what:>8}: {:.0} MB/s", (each * streams) as f64 / 1e6 / seconds);
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let mebibytes = args.next().map_or(Ok(1024), |s| s.parse()).context("MiB")?;
    let streams = args.next().map_or(Ok(1), |s| s.parse()).context("streams")?;
    let only = args.next();
    let (server_tls, client_tls) = configs()?;
    let [sinks, hbone, outbound, plain, hop] = {
        let mut listeners = Vec::new();
        for _ in 0..5 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await?);
        }
        <[TcpListener; 5]>::try_from(listeners).map_err(|_| anyhow::anyhow!("five listeners"))?
    };
    let (sink_at, tunnel, hop_at) = (sinks.local_addr()?, hbone.local_addr()?, hop.local_addr()?);
    let (through_hbone, through_relays) = (outbound.local_addr()?, plain.local_addr()?);
    tokio::spawn(async move {
        while let Ok((stream, _)) = sinks.accept().await {
            tokio::spawn(sink(stream));
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = hbone.accept().await {
            tokio::spawn(inbound(stream, Arc::clone(&server_tls), sink_at));
        }
    });
    for (listener, next) in [(plain, hop_at), (hop, sink_at)] {
        tokio::spawn(async move {
            while let Ok((downstream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let upstream =
                        dial::connect(&PlainSockets, next, Keepalive::Usual, TIMEOUT).await?;
                    let cancel = CancellationToken::new();
                    relay(downstream, upstream, None, &Counters::default(), &cancel).await;
                    Ok::<_, anyhow::Error>(())
                });
            }
        });
    }
    let pool = Arc::new(HbonePool::new(HbonePoolOptions::default()));
    let target = HboneTarget {
        pod: Arc::new(Pod {
            workload: Workload {
                uid: WorkloadUid("bench".into()),
                name: "bench".to_owned(),
                identity: "spiffe://cluster.local/ns/bench/sa/client".parse()?,
                addresses: vec![tunnel.ip()],
                labels: Default::default(),
                mtls: MtlsMode::Strict,
            },
            sockets: Arc::new(PlainSockets),
        }),
        tunnel,
        authority: sink_at,
        identity: "spiffe://cluster.local/ns/bench/sa/server".parse()?,
        workload: None,
    };
    tokio::spawn(async move {
        while let Ok((downstream, _)) = outbound.accept().await {
            let (pool, target, tls) = (Arc::clone(&pool), target.clone(), Arc::clone(&client_tls));
            tokio::spawn(async move {
                let upstream = pool.connect(&target, &tls, TIMEOUT).await?;
                let cancel = CancellationToken::new();
                relay(downstream, upstream, None, &Counters::default(), &cancel).await;
                Ok::<_, anyhow::Error>(())
            });
        }
    });
    let ways = [("none", sink_at), ("relays", through_relays), ("hbone", through_hbone)];
    for _ in 0..3 {
        for (way, address) in ways {
            if only.as_ref().is_none_or(|only| only == way) {
                measure(way, address, mebibytes, streams).await?;
            }
        }
    }
    Ok(())
}

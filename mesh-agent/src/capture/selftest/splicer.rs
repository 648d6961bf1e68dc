//! Pairs of connected sockets, plain or spliced by the agent's own program.
#![forbid(unsafe_code)]

use std::{
    fmt, fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, SkStorage, SockHash},
};
use mesh_common::{
    abi::map,
    address::Address,
    key::{SpliceKey, SpliceSide, TupleKey},
    value::{Authorized, Leg, Splice, Way},
};
use nix::{
    errno::Errno,
    sys::socket::{
        setsockopt,
        sockopt::{TcpTlsTx, TcpUlp, TlsCryptoInfo},
    },
};

use super::{PATIENCE, Seen};
use crate::capture::{
    error::{brief, chain},
    loader,
};

/// How a check's sockets are connected: spliced, or by plain TCP, which is what the
/// checks are checked with.
#[derive(Clone)]
pub(super) struct Wiring(pub(super) Option<Arc<Splicer>>);

/// The agent's BPF object with maps of its own.
pub(super) struct Splicer {
    maps: Mutex<Maps>,
    /// Keeps the program.
    _ebpf: Mutex<Ebpf>,
}

struct Maps {
    sockets: SockHash<MapData, SpliceKey>,
    storage: SkStorage<MapData, Splice>,
    authorized: HashMap<MapData, TupleKey, Authorized>,
    pairs: u64,
}

impl Splicer {
    /// Loads the object and attaches its splicing program to a map of sockets.
    pub(super) fn new() -> Result<Self, String> {
        let mut ebpf = loader::load_private().map_err(|error| chain(&error))?;
        loader::attach_splice(&mut ebpf).map_err(|error| brief(&chain(&error)))?;
        let maps = Maps {
            sockets: take(&mut ebpf, map::SPLICED)?,
            storage: take(&mut ebpf, map::SPLICE)?,
            authorized: take(&mut ebpf, map::AUTHORIZED)?,
            pairs: 0,
        };
        Ok(Self { maps: Mutex::new(maps), _ebpf: Mutex::new(ebpf) })
    }

    fn maps(&self) -> std::sync::MutexGuard<'_, Maps> {
        // Each change stands for itself.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, String> {
    let map = ebpf.take_map(name).ok_or_else(|| format!("the BPF object has no `{name}`"))?;
    map.try_into().map_err(|error| chain(&error))
}

/// Two connected sockets; reads and writes give up after [`PATIENCE`].
pub(super) struct Pair {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
    wiring: Wiring,
    tuple: TupleKey,
    number: u64,
}

impl Wiring {
    /// A pair whose data takes the wiring's way.
    pub(super) fn pair(&self) -> Result<Pair, String> {
        let pair = self.pair_on_tcp()?;
        pair.enter(SpliceSide::Client)?;
        pair.enter(SpliceSide::Server)?;
        Ok(pair)
    }

    /// A pair of an application's socket, the client, and one of the agent's.
    pub(super) fn leg(&self, granted: u64) -> Result<Pair, String> {
        let pair = self.pair_on_tcp()?;
        pair.enter_as(SpliceSide::Client, Leg::ToAgent, granted)?;
        pair.enter_as(SpliceSide::Server, Leg::FromAgent, 0)?;
        pair.server.set_nonblocking(true).map_err(said("O_NONBLOCK"))?;
        Ok(pair)
    }

    /// A pair that is not spliced yet.
    pub(super) fn pair_on_tcp(&self) -> Result<Pair, String> {
        let connected = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let client = TcpStream::connect(listener.local_addr()?)?;
            let server = loop {
                let (server, from) = listener.accept()?;
                // Anybody may dial a port of loopback.
                if from == client.local_addr()? {
                    break server;
                }
            };
            for socket in [&client, &server] {
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.set_write_timeout(Some(PATIENCE))?;
                socket.set_nodelay(true)?;
            }
            let tuple = tuple(client.local_addr()?, client.peer_addr()?);
            Ok::<_, io::Error>((client, server, tuple))
        };
        let (client, server, tuple) = connected().map_err(said("a connection over loopback"))?;
        let number = self.authorize(&tuple)?;
        Ok(Pair { client, server, wiring: self.clone(), tuple, number })
    }

    fn authorize(&self, tuple: &TupleKey) -> Result<u64, String> {
        let Some(splicer) = &self.0 else { return Ok(0) };
        let mut maps = splicer.maps();
        maps.pairs += 1;
        let number = maps.pairs;
        let connection = Authorized {
            asked: tuple.destination,
            asked_port: tuple.destination_port,
            fin: 0,
            source_cookie: 0,
            socket_cookie: number,
            opened_ns: 0,
            established_ns: 0,
            received_at_fin: 0,
            seen: 1,
            splice: 1,
            spliced_up: 0,
            spliced_down: 0,
            spliced_ns: 0,
        };
        maps.authorized.insert(tuple, connection, 0).map_err(|error| chain(&error))?;
        Ok(number)
    }
}

impl Pair {
    /// Puts one end where the other finds it.
    pub(super) fn enter(&self, side: SpliceSide) -> Result<(), String> {
        self.enter_as(side, Leg::None, 0)
    }

    /// As [`Pair::enter`], where the agent has one of the ends; `granted`: what the other may
    /// splice into it.
    pub(super) fn enter_as(&self, side: SpliceSide, leg: Leg, granted: u64) -> Result<(), String> {
        let Some(splicer) = &self.wiring.0 else { return Ok(()) };
        let socket = match side {
            SpliceSide::Client => &self.client,
            SpliceSide::Server => &self.server,
        };
        let key = SpliceKey::new(0, self.number, 0, side);
        let splice = Splice {
            peer: key.other_end(),
            tuple: self.tuple,
            sent: 0,
            granted,
            mark: 0,
            messages: 0,
            way: Way::Undecided as u32,
            leg: leg as u32,
            _zero: 0,
        };
        let mut maps = splicer.maps();
        maps.storage.insert(socket, splice, 0).map_err(|error| chain(&error))?;
        maps.sockets.insert(key, socket.as_raw_fd(), 0).map_err(|error| chain(&error))
    }

    /// Which way what the client sends goes, and how much of it was spliced into the agent's.
    pub(super) fn client_way(&self) -> Result<Option<(Way, u64)>, String> {
        let Some(splicer) = &self.wiring.0 else { return Ok(None) };
        let found = splicer.maps().storage.get(&self.client, 0).map_err(|e| chain(&e))?;
        Ok(Some((Way::from_number(found.way), found.sent)))
    }

    /// Fails unless so many bytes took the short way, from client to server and back.
    pub(super) fn expect_spliced(&self, up: u64, down: u64) -> Result<(), String> {
        let Some(splicer) = &self.wiring.0 else { return Ok(()) };
        let found = splicer.maps().authorized.get(&self.tuple, 0).map_err(|e| chain(&e))?;
        if (found.spliced_up, found.spliced_down) == (up, down) {
            return Ok(());
        }
        Err(format!(
            "{up} and {down} bytes were sent, {} and {} of them were spliced",
            found.spliced_up, found.spliced_down
        ))
    }
}

fn tuple(source: SocketAddr, destination: SocketAddr) -> TupleKey {
    TupleKey {
        netns_cookie: 0,
        source: Address::from(source.ip()),
        destination: Address::from(destination.ip()),
        source_port: source.port().into(),
        destination_port: destination.port().into(),
    }
}

/// What failed, and what was said.
pub(super) fn said<E: fmt::Display>(what: &str) -> impl Fn(E) -> String + '_ {
    move |error| format!("{what}: {error}")
}

/// What became of a read or write that had to succeed: a socket with a timeout says the
/// same when it gives up early and when it hangs.
pub(super) fn stuck(what: &str, begun: Instant, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock if begun.elapsed() < PATIENCE - Duration::from_millis(20) => {
            format!("{what} gave up at once (EAGAIN)")
        }
        io::ErrorKind::WouldBlock => format!("{what} hung"),
        _ => format!("{what}: {error}"),
    }
}

/// Linux that is known to send plaintext or to fall over where both meet. It is not
/// tried there.
const KTLS_BUG: [((u32, u32), u32); 3] = [((6, 1), 170), ((6, 12), 43), ((6, 18), 5)];

/// A spliced socket must not become a TLS socket of the kernel: one of the two would
/// not see the data.
pub(super) fn ktls(wiring: &Wiring) -> Seen {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    if is_known_bad(release.trim()) {
        return Err(format!("{}: TLS on a spliced socket is a known bug here", release.trim()));
    }
    let pair = wiring.pair()?;
    match setsockopt(&pair.client, TcpUlp::default(), b"tls") {
        Err(Errno::ENOENT) => return Ok("this kernel has no TLS sockets".to_owned()),
        Err(errno) => return Ok(format!("refused: {errno}")),
        Ok(()) => {}
    }
    let key = libc::tls12_crypto_info_aes_gcm_128 {
        info: libc::tls_crypto_info {
            version: libc::TLS_1_3_VERSION,
            cipher_type: libc::TLS_CIPHER_AES_GCM_128,
        },
        iv: [0; 8],
        key: [0; 16],
        salt: [0; 4],
        rec_seq: [0; 8],
    };
    match setsockopt(&pair.client, TcpTlsTx, &TlsCryptoInfo::Aes128Gcm(key)) {
        Err(errno) => Ok(format!("refused: {errno}")),
        Ok(()) => Err("a spliced socket may become a TLS socket".to_owned()),
    }
}

/// Releases before 6.1 are not told apart: none is known to be good.
fn is_known_bad(release: &str) -> bool {
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let mut next = || numbers.next().unwrap_or_default();
    let (version, patch) = ((next(), next()), next());
    let last_bad = KTLS_BUG.iter().find(|(series, _)| *series == version);
    version < (6, 1) || last_bad.is_some_and(|(_, last)| patch <= *last)
}

#[cfg(test)]
mod tests {
    use super::is_known_bad;

    #[test]
    fn kernels_with_the_bug_are_known_by_their_release() {
        for (release, expected) in [
            ("5.10.0-28-cloud-amd64", true),
            ("6.1.170-amd64", true),
            ("6.1.192", false),
            ("6.12.43+deb13", true),
            ("6.12.117", false),
            ("6.18.5", true),
            ("6.18.44-fc-v769", false),
            ("7.3.4", false),
            ("", true),
        ] {
            assert_eq!(is_known_bad(release), expected, "{release}");
        }
    }
}

//! A recording of an interface: packets, TCP streams, TLS records.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use crate::{eventually, netns::Netns};

/// Recording more than this is a mistake of the test.
const LIMIT_BYTES: usize = 256 << 20;

/// A running recording.
#[derive(Debug)]
pub struct Capture {
    recorded: Arc<Mutex<Vec<Packet>>>,
    stop: Arc<AtomicBool>,
    /// How often nothing was left to record.
    idle: Arc<AtomicU64>,
    reader: Option<JoinHandle<()>>,
}

/// One recorded packet, from the Ethernet header on.
#[derive(Debug, Clone)]
struct Packet {
    at: SystemTime,
    bytes: Vec<u8>,
}

/// One direction of one TCP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Who sent it.
    pub from: SocketAddr,
    /// Who it was sent to.
    pub to: SocketAddr,
    /// The payload in order, as far as it was seen.
    pub bytes: Vec<u8>,
}

impl Capture {
    /// Records `interface` of `netns` from now on.
    pub(crate) fn start(netns: &Netns, interface: &str) -> Self {
        let socket = netns.enter(|| packet_socket(interface)).expect("open a packet socket");
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let idle = Arc::new(AtomicU64::new(0));
        let reader = thread::spawn({
            let (recorded, stop) = (Arc::clone(&recorded), Arc::clone(&stop));
            let idle = Arc::clone(&idle);
            move || record(&socket, &recorded, &stop, &idle)
        });
        Self { recorded, stop, idle, reader: Some(reader) }
    }

    fn packets(&self) -> std::sync::MutexGuard<'_, Vec<Packet>> {
        // What was sent before the call must be in: the second time that nothing is left, all
        // of it was looked for after the call. Somebody may send without end.
        let begun = Instant::now();
        let before = self.idle.load(Ordering::Acquire);
        while self.idle.load(Ordering::Acquire) < before + 2
            && begun.elapsed() < Duration::from_secs(5)
        {
            thread::sleep(Duration::from_millis(5));
        }
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The TCP streams seen so far, put together.
    pub fn streams(&self) -> Vec<Stream> {
        let mut segments: BTreeMap<(SocketAddr, SocketAddr), Vec<Segment>> = BTreeMap::new();
        for packet in self.packets().iter() {
            if let Some((from, to, segment)) = parse_tcp(&packet.bytes) {
                segments.entry((from, to)).or_default().push(segment);
            }
        }
        let whole = |((from, to), segments)| Stream { from, to, bytes: assemble(segments) };
        segments.into_iter().map(whole).filter(|stream| !stream.bytes.is_empty()).collect()
    }

    /// Whether any TCP stream or any single packet carries `needle`.
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.streams().iter().any(|stream| holds(&stream.bytes, needle))
            || self.packets().iter().any(|packet| holds(&packet.bytes, needle))
    }

    /// # Panics
    /// If `needle` was on the wire.
    #[track_caller]
    pub fn expect_no_trace_of(&self, needle: &str) {
        assert!(!self.contains(needle.as_bytes()), "`{needle}` was on the wire: {self}");
    }

    /// # Panics
    /// Unless `needle` was on the wire, or comes: the neighbour may not be known yet.
    #[track_caller]
    pub fn expect_plaintext(&self, needle: &str) {
        eventually(&format!("`{needle}` is on the wire"), || {
            if self.contains(needle.as_bytes()) { Ok(()) } else { Err(self.to_string()) }
        });
    }

    /// How many whole TLS records were seen.
    pub fn tls_records(&self) -> usize {
        self.streams().iter().filter_map(|stream| tls_records(&stream.bytes)).sum()
    }

    /// # Panics
    /// Unless there was TCP payload and all of it was TLS with application data.
    #[track_caller]
    pub fn expect_only_tls(&self) {
        let streams = self.streams();
        assert!(!streams.is_empty(), "nothing was on the wire: {self}");
        for stream in &streams {
            assert!(
                tls_records(&stream.bytes).is_some(),
                "not TLS from {} to {}: {}",
                stream.from,
                stream.to,
                String::from_utf8_lossy(&stream.bytes[..stream.bytes.len().min(200)])
            );
        }
        assert!(
            streams.iter().any(|s| s.bytes.windows(3).any(|w| w == [0x17, 3, 3])),
            "no TLS application data: {self}"
        );
    }

    /// Writes everything recorded as a pcap file.
    pub fn write_pcap(&self, path: &Path) {
        let mut file = Vec::new();
        let header: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, 1];
        file.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
        for packet in self.packets().iter() {
            let at = packet.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let length = u32::try_from(packet.bytes.len()).unwrap_or(u32::MAX);
            let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
            let words = [seconds, at.subsec_micros(), length, length];
            file.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
            file.extend_from_slice(&packet.bytes);
        }
        fs::write(path, file).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    }
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let packets = self.packets().len();
        write!(f, "{packets} packets")?;
        for Stream { from, to, bytes } in self.streams() {
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            write!(f, "\n  {from} -> {to}: {} bytes: {start:?}", bytes.len())?;
        }
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // A reader that panicked said so already.
            let _ = reader.join();
        }
    }
}

fn packet_socket(interface: &str) -> io::Result<OwnedFd> {
    let protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be();
    // SAFETY: no pointers; a valid descriptor is owned at once.
    let fd = unsafe {
        let fd =
            libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol));
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let index = nix::net::if_::if_nametoindex(interface)?;
    // SAFETY: all-zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index).unwrap_or_default();
    let length = u32::try_from(size_of_val(&address)).unwrap_or_default();
    // SAFETY: the pointer and the length are those of `address`, which outlives the call.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes: i32 = 64 << 20;
    let buffer = (&raw const bytes).cast();
    // SAFETY: `buffer` points to an `i32` that outlives the call. Best effort.
    unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, buffer, 4) };
    Ok(fd)
}

fn record(socket: &OwnedFd, recorded: &Mutex<Vec<Packet>>, stop: &AtomicBool, idle: &AtomicU64) {
    let mut buffer = vec![0u8; 1 << 18];
    let mut total = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid `pollfd`.
        if unsafe { libc::poll(&raw mut poll, 1, 20) } != 1 {
            idle.fetch_add(1, Ordering::Release);
            continue;
        }
        // SAFETY: the pointer and the length are those of `buffer`.
        let length =
            unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let Ok(length) = usize::try_from(length) else { continue };
        total += length;
        assert!(total < LIMIT_BYTES, "the recording of the wire is too long");
        let packet = Packet { at: SystemTime::now(), bytes: buffer[..length].to_vec() };
        recorded.lock().unwrap_or_else(PoisonError::into_inner).push(packet);
    }
}

#[derive(Debug, Clone)]
struct Segment {
    sequence: u32,
    payload: Vec<u8>,
}

/// Reads Ethernet, IPv4 or IPv6 without extension headers, TCP.
fn parse_tcp(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, Segment)> {
    const TCP: u8 = 6;
    let be16 = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?));
    let packet = frame.get(14..)?;
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match be16(frame.get(12..)?)? {
        0x0800 => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            let length = usize::from(be16(packet.get(2..)?)?);
            if *packet.get(9)? != TCP {
                return None;
            }
            let address = |at: usize| -> Option<Ipv4Addr> {
                Some(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?.into())
            };
            let end = if length == 0 { packet.len() } else { length.min(packet.len()) };
            (address(12)?.into(), address(16)?.into(), packet.get(header..end)?)
        }
        0x86dd => {
            let length = usize::from(be16(packet.get(4..)?)?);
            if *packet.get(6)? != TCP {
                return None;
            }
            let address = |at: usize| -> Option<Ipv6Addr> {
                Some(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?.into())
            };
            let end = if length == 0 { packet.len() } else { (40 + length).min(packet.len()) };
            (address(8)?.into(), address(24)?.into(), packet.get(40..end)?)
        }
        _ => return None,
    };
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    let sequence = u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?);
    let payload = tcp.get(header..)?.to_vec();
    let (from, to) = ((source, be16(tcp)?), (destination, be16(tcp.get(2..)?)?));
    Some((from.into(), to.into(), Segment { sequence, payload }))
}

/// Orders segments by sequence number and drops what was sent again.
fn assemble(mut segments: Vec<Segment>) -> Vec<u8> {
    segments.retain(|segment| !segment.payload.is_empty());
    let Some(first) = segments.first().map(|segment| segment.sequence) else {
        return Vec::new();
    };
    // Relative to a point before the first seen, so that reordering does not wrap.
    let base = first.wrapping_sub(1 << 20);
    segments.sort_by_key(|segment| segment.sequence.wrapping_sub(base));
    let mut bytes = Vec::new();
    let mut next = segments[0].sequence;
    for Segment { sequence, payload } in segments {
        let seen = next.wrapping_sub(sequence) as usize;
        // A hole (a packet the recording missed) makes `seen` huge: go on behind it.
        let fresh = if seen > 1 << 30 { Some(&payload[..]) } else { payload.get(seen..) };
        if let Some(fresh) = fresh {
            bytes.extend_from_slice(fresh);
            #[expect(clippy::cast_possible_truncation, reason = "a payload is below 64 KiB")]
            let end = sequence.wrapping_add(payload.len() as u32);
            next = end;
        }
    }
    bytes
}

/// The number of records if all of `stream` is TLS records (the last may be cut off).
fn tls_records(stream: &[u8]) -> Option<usize> {
    let mut rest = stream;
    let mut records = 0;
    while let Some((header, behind)) = rest.split_first_chunk::<5>() {
        let [kind @ 20..=24, 3, 0..=4, high, low] = *header else { return None };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > (1 << 14) + 256 || kind == 24 {
            return None;
        }
        let Some(next) = behind.get(length..) else { return Some(records) };
        records += 1;
        rest = next;
    }
    Some(records)
}

fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.len() >= needle.len() && bytes.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(sequence: u32, payload: &[u8]) -> Segment {
        Segment { sequence, payload: payload.to_vec() }
    }

    #[test]
    fn segments_are_ordered_and_deduplicated() {
        let check = |segments: &[Segment], expected: &[u8]| {
            assert_eq!(assemble(segments.to_vec()), expected, "{segments:?}");
        };
        check(&[], b"");
        check(&[segment(10, b"ab"), segment(12, b"cd")], b"abcd");
        check(&[segment(12, b"cd"), segment(10, b"ab")], b"abcd");
        check(&[segment(10, b"ab"), segment(10, b"ab"), segment(11, b"bc")], b"abc");
        check(&[segment(u32::MAX, b"ab"), segment(1, b"cd")], b"abcd");
        check(&[segment(10, b"ab"), segment(100, b"yz")], b"abyz");
    }

    #[test]
    fn tls_is_told_from_plaintext() {
        assert_eq!(tls_records(&[22, 3, 1, 0, 2, 9, 9, 23, 3, 3, 0, 1, 7]), Some(2));
        assert_eq!(tls_records(&[23, 3, 3, 0, 9, 1]), Some(0), "cut off");
        assert_eq!(tls_records(b"GET / HTTP/1.1\r\n"), None);
        assert_eq!(tls_records(&[22, 3, 1, 0, 0, b'G', b'E', b'T', b' ', b'/']), None);
    }
}

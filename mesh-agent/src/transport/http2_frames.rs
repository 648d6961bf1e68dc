//! HTTP/2's small DATA frames, put together as they are read.
//!
//! What h2 keeps of a frame is many times what flow control counts of a single byte, so it bounds
//! how many small ones wait, and ends the connection where there are more: of a message stream
//! that comes faster than it is passed on there may be many in what one read brings. Where a
//! frame ends means nothing (RFC 9113 §6.1), nor does the order of what belongs to different
//! streams, and so those of one stream become one.

use std::ops::Range;

/// RFC 9113 §3.4.
pub(crate) const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
/// What h2 takes for small.
const SMALL_BYTES: usize = 256;
/// Every peer may send as much: RFC 9113 §4.2.
const FRAME_MAX_BYTES: usize = 16 << 10;
/// Frames of more streams at once are put together in turns.
const STREAMS_MAX: usize = 16;

/// Where one side of a connection has got to.
#[derive(Debug)]
pub(crate) struct Frames {
    /// Bytes that go by as they are: the preface, and what of a frame is yet to come.
    passing: usize,
    /// The beginning of a frame's head; it has gone by.
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
}

/// A whole frame's head.
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    fn new(bytes: &[u8]) -> Self {
        let [a, b, c, kind, flags, s, t, u, v] = *bytes else {
            unreachable!("heads have nine bytes")
        };
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let stream = u32::from_be_bytes([s, t, u, v]) & (u32::MAX >> 1);
        Self { length, kind, flags, stream }
    }

    /// Padding counts for flow control; what is of no stream is an error; of those that say
    /// nothing h2 takes few.
    fn is_small_data(&self) -> bool {
        let plain = self.kind == DATA && self.flags & !END_STREAM == 0;
        let says = self.length > 0 || self.flags & END_STREAM != 0;
        plain && says && self.stream != 0 && self.length < SMALL_BYTES
    }
}

impl Frames {
    /// After the preface, if one is to come.
    pub(crate) fn new(preface_bytes: usize) -> Self {
        Self { passing: preface_bytes, head: [0; HEAD_BYTES], head_bytes: 0 }
    }

    /// Puts together what is in `chunk`, the bytes that come next; returns how many it has become,
    /// never none of some.
    pub(crate) fn put_together(&mut self, chunk: &mut [u8]) -> usize {
        let (mut from, mut to) = (0, 0);
        while from < chunk.len() {
            let rest = chunk.len() - from;
            let by = if self.passing > 0 {
                let by = self.passing.min(rest);
                self.passing -= by;
                by
            } else if self.head_bytes > 0 || rest < HEAD_BYTES {
                self.split_head(&chunk[from..])
            } else {
                let first = Head::new(&chunk[from..from + HEAD_BYTES]);
                let length = HEAD_BYTES + first.length;
                let run = run(chunk, from);
                if run.len() > length {
                    let end = run.end;
                    let run = chunk[run].to_vec();
                    to += merge(&run, &mut chunk[to..]);
                    from = end;
                    continue;
                }
                self.passing = length.saturating_sub(rest);
                length.min(rest)
            };
            // Mostly nothing has been put together before it.
            if to < from {
                chunk.copy_within(from..from + by, to);
            }
            (from, to) = (from + by, to + by);
        }
        to
    }

    /// How much of `bytes` is of a head that is not whole in one read.
    fn split_head(&mut self, bytes: &[u8]) -> usize {
        let by = bytes.len().min(HEAD_BYTES - self.head_bytes);
        self.head[self.head_bytes..][..by].copy_from_slice(&bytes[..by]);
        self.head_bytes += by;
        if self.head_bytes == HEAD_BYTES {
            self.head_bytes = 0;
            self.passing = Head::new(&self.head).length;
        }
        by
    }
}

/// The small frames of data from `from` on that are whole, one after another.
fn run(chunk: &[u8], from: usize) -> Range<usize> {
    let mut end = from;
    while let Some(head) = chunk.get(end..end + HEAD_BYTES).map(Head::new) {
        let next = end + HEAD_BYTES + head.length;
        if !head.is_small_data() || next > chunk.len() {
            break;
        }
        end = next;
    }
    from..end
}

fn frames(run: &[u8]) -> impl Iterator<Item = (Head, &[u8])> {
    let mut rest = run;
    std::iter::from_fn(move || {
        let (head, after) = rest.split_at_checked(HEAD_BYTES)?;
        let head = Head::new(head);
        let (payload, after) = after.split_at_checked(head.length)?;
        rest = after;
        Some((head, payload))
    })
}

/// Writes what the frames of `run` carry to `out`, stream by stream; returns how many bytes.
fn merge(run: &[u8], out: &mut [u8]) -> usize {
    let mut written = 0;
    let mut rest = run;
    while !rest.is_empty() {
        let mut streams: Vec<u32> = Vec::with_capacity(STREAMS_MAX);
        let mut turn = 0;
        for (head, payload) in frames(rest) {
            if !streams.contains(&head.stream) {
                if streams.len() == STREAMS_MAX {
                    break;
                }
                streams.push(head.stream);
            }
            turn += HEAD_BYTES + payload.len();
        }
        let (these, others) = rest.split_at(turn);
        rest = others;
        for stream in streams {
            written += merge_stream(these, stream, &mut out[written..]);
        }
    }
    written
}

fn merge_stream(run: &[u8], stream: u32, out: &mut [u8]) -> usize {
    let mut written = 0;
    // Where the frame begins that may grow.
    let mut growing: Option<usize> = None;
    for (head, payload) in frames(run).filter(|(head, _)| head.stream == stream) {
        let fits = |begin: &usize| written - begin - HEAD_BYTES + payload.len() <= FRAME_MAX_BYTES;
        let begin = growing.filter(fits).unwrap_or_else(|| {
            let begin = written;
            out[begin + 3] = DATA;
            out[begin + 5..begin + HEAD_BYTES].copy_from_slice(&stream.to_be_bytes());
            written += HEAD_BYTES;
            begin
        });
        out[written..written + payload.len()].copy_from_slice(payload);
        written += payload.len();
        let length = u32::try_from(written - begin - HEAD_BYTES).expect("FRAME_MAX_BYTES at most");
        out[begin..begin + 3].copy_from_slice(&length.to_be_bytes()[1..]);
        out[begin + 4] = head.flags;
        // What comes after its end is the peer's error, and stays one.
        growing = (head.flags & END_STREAM == 0).then_some(begin);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// What becomes of `bytes` where each read brings as many.
    fn read(preface: usize, bytes: &[u8], mut each: impl FnMut() -> usize) -> Vec<u8> {
        let (mut frames, mut rest, mut out) = (Frames::new(preface), bytes, Vec::new());
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(each().min(rest.len()));
            let mut chunk = chunk.to_vec();
            let becomes = frames.put_together(&mut chunk);
            assert!((1..=chunk.len()).contains(&becomes));
            out.extend_from_slice(&chunk[..becomes]);
            rest = after;
        }
        out
    }

    fn whole(bytes: &[u8]) -> Vec<u8> {
        read(0, bytes, || usize::MAX)
    }

    #[test]
    fn small_frames_of_a_stream_become_one() {
        let x = |stream| frame(DATA, 0, stream, b"x");
        assert_eq!(whole(&x(1).repeat(3)), frame(DATA, 0, 1, b"xxx"));
        // Also where others come between, and with the end of the stream.
        let turns = [x(1), x(3), x(1), frame(DATA, END_STREAM, 3, b"y")];
        let merged = [frame(DATA, 0, 1, b"xx"), frame(DATA, END_STREAM, 3, b"xy")];
        assert_eq!(whole(&turns.concat()), merged.concat());
        let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &x(1), &x(1)].concat();
        let merged = [&preface[..PREFACE_BYTES], &frame(DATA, 0, 1, b"xx")].concat();
        assert_eq!(read(PREFACE_BYTES, &preface, || usize::MAX), merged);
        // No more than every peer may send.
        let many = frame(DATA, 0, 1, &[7; 255]).repeat(65);
        let merged = [frame(DATA, 0, 1, &[7; 64 * 255]), frame(DATA, 0, 1, &[7; 255])];
        assert_eq!(whole(&many), merged.concat());
    }

    #[test]
    fn what_means_something_is_left_as_it_is() {
        let x = || frame(DATA, 0, 1, b"x");
        for between in [
            frame(1, 4, 1, b"trailers"),
            frame(3, 0, 1, &[0; 4]),
            frame(6, 0, 0, &[0; 8]),
            frame(0xbe, 0, 1, b""),
            // Padded, empty, large, and what is of no stream.
            frame(DATA, 8, 1, b"\x01x "),
            frame(DATA, 0, 1, b""),
            frame(DATA, 0, 1, &[7; 256]),
            frame(DATA, 0, 0, b"x"),
        ] {
            let bytes = [x(), between, x()].concat();
            assert_eq!(whole(&bytes), bytes);
        }
        // After the end of its stream.
        let late = [frame(DATA, END_STREAM, 1, b"x"), x(), x()].concat();
        let merged = [frame(DATA, END_STREAM, 1, b"x"), frame(DATA, 0, 1, b"xx")].concat();
        assert_eq!(whole(&late), merged);
    }

    /// What streams are told, and whether it is all.
    type Told = BTreeMap<u32, (Vec<u8>, u8)>;

    /// What a peer makes of it: frames that are not data, and what is told after each.
    fn meaning(bytes: &[u8]) -> Vec<(Vec<u8>, Told)> {
        let mut told = vec![(Vec::new(), Told::new())];
        let mut whole = 0;
        for (head, payload) in frames(bytes) {
            whole += HEAD_BYTES + payload.len();
            if head.kind == DATA && head.flags & !END_STREAM == 0 && head.stream != 0 {
                let stream = &mut told.last_mut().unwrap().1.entry(head.stream).or_default();
                stream.0.extend_from_slice(payload);
                stream.1 |= head.flags;
            } else {
                told.push((frame(head.kind, head.flags, head.stream, payload), Told::new()));
            }
        }
        assert_eq!(whole, bytes.len(), "ends within a frame");
        told
    }

    #[test]
    fn however_it_is_read_it_means_the_same() {
        let mut random = StdRng::seed_from_u64(9113);
        for _ in 0..500 {
            let mut bytes = Vec::new();
            for _ in 0..random.random_range(1..200) {
                let payload = vec![random.random(); random.random_range(0..300)];
                let small = &payload[..payload.len().min(random.random_range(0..12))];
                let stream = random.random_range(0..40);
                bytes.extend(match random.random_range(0..12) {
                    0 => frame(random.random(), random.random(), stream, &payload),
                    1 => frame(DATA, 0, stream, &payload),
                    2 => frame(DATA, END_STREAM, stream, small),
                    _ => frame(DATA, 0, stream, small),
                });
            }
            let most = random.random_range(1..4000);
            let merged = read(0, &bytes, || random.random_range(1..=most));
            assert_eq!(meaning(&merged), meaning(&bytes));
        }
    }
}

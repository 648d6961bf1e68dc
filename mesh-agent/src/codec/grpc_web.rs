//! gRPC-Web: gRPC for clients that see no trailers, which come as a frame of the body; in
//! base64 for those that can't read bytes.
//!
//! Nothing is held but what does not make a whole group of base64 yet.
//!
//! Spec: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md>, as Envoy 1.40 speaks it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;

use super::grpc::PREFIX_BYTES;

/// The first byte of the frame that trailers come in.
const TRAILERS: u8 = 0x80;
/// A group of base64, and what it stands for.
const QUAD: usize = 4;
const TRIPLE: usize = 3;

/// Why a request's text can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Bad gRPC-web request, invalid base64 data.")]
pub struct BadBase64;

/// Reads a request's body: as it is, or base64 as it comes, where each piece may end with
/// padding.
#[derive(Debug)]
pub struct FromWeb {
    text: bool,
    /// Less than a group.
    rest: Vec<u8>,
}

impl FromWeb {
    /// Of base64 if `text`.
    pub fn new(text: bool) -> Self {
        Self { text, rest: Vec::new() }
    }

    /// What the next piece stands for, as far as it is whole.
    ///
    /// # Errors
    /// It is no base64.
    pub fn push(&mut self, piece: Bytes) -> Result<Bytes, BadBase64> {
        if !self.text {
            return Ok(piece);
        }
        self.rest.extend_from_slice(&piece);
        let whole = self.rest.len() / QUAD * QUAD;
        let decoded = STANDARD.decode(&self.rest[..whole]).map_err(|_| BadBase64)?;
        self.rest.drain(..whole);
        Ok(decoded.into())
    }

    /// There is no more.
    ///
    /// # Errors
    /// It ends in the middle of a group.
    pub fn finish(&self) -> Result<(), BadBase64> {
        if self.rest.is_empty() { Ok(()) } else { Err(BadBase64) }
    }
}

/// Writes a response's body: frames as they are, or each in base64 by itself, and trailers as
/// one frame more.
#[derive(Debug)]
pub struct ToWeb {
    text: Option<ToText>,
}

/// Where in a frame the text is.
#[derive(Debug, Default)]
struct ToText {
    /// Of the frame's prefix.
    prefix: [u8; PREFIX_BYTES],
    have: usize,
    /// Of its message.
    left: u32,
    /// Less than a group.
    rest: Vec<u8>,
}

impl ToWeb {
    /// In base64 if `text`.
    pub fn new(text: bool) -> Self {
        Self { text: text.then(ToText::default) }
    }

    /// What becomes of the next piece.
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        match &mut self.text {
            None => piece,
            Some(text) => text.push(&piece),
        }
    }

    /// What comes after the last piece.
    pub fn finish(&mut self, trailers: Option<&HeaderMap>) -> Bytes {
        let mut out = String::new();
        if let Some(text) = &mut self.text {
            text.flush(&mut out);
        }
        let Some(trailers) = trailers else { return out.into() };
        let mut frame = BytesMut::new();
        frame.put_bytes(0, PREFIX_BYTES);
        for (name, value) in trailers {
            frame.extend_from_slice(name.as_str().as_bytes());
            frame.put_u8(b':');
            frame.extend_from_slice(value.as_bytes());
            frame.extend_from_slice(b"\r\n");
        }
        // Heads are bounded, and so are trailers.
        let length = u32::try_from(frame.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
        frame[0] = TRAILERS;
        frame[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
        match &self.text {
            None => frame.freeze(),
            Some(_) => {
                STANDARD.encode_string(&frame, &mut out);
                out.into()
            }
        }
    }
}

impl ToText {
    fn push(&mut self, mut piece: &[u8]) -> Bytes {
        let mut out = String::with_capacity(piece.len() / TRIPLE * QUAD + QUAD);
        while !piece.is_empty() {
            let taken = if self.have < PREFIX_BYTES {
                let taken = piece.len().min(PREFIX_BYTES - self.have);
                self.prefix[self.have..self.have + taken].copy_from_slice(&piece[..taken]);
                self.have += taken;
                if self.have == PREFIX_BYTES {
                    let [_, length @ ..] = self.prefix;
                    self.left = u32::from_be_bytes(length);
                }
                taken
            } else {
                let left = usize::try_from(self.left).unwrap_or(usize::MAX);
                let taken = piece.len().min(left);
                // Not more than `left`.
                self.left -= u32::try_from(taken).unwrap_or(self.left);
                taken
            };
            self.rest.extend_from_slice(&piece[..taken]);
            piece = &piece[taken..];
            if self.have == PREFIX_BYTES && self.left == 0 {
                self.flush(&mut out);
                self.have = 0;
            } else {
                let whole = self.rest.len() / TRIPLE * TRIPLE;
                STANDARD.encode_string(&self.rest[..whole], &mut out);
                self.rest.drain(..whole);
            }
        }
        out.into()
    }

    /// A frame ends.
    fn flush(&mut self, out: &mut String) {
        STANDARD.encode_string(&self.rest, out);
        self.rest.clear();
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn frame(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0][..], &length, message].concat()
    }

    fn trailers() -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("5"));
        trailers.insert("grpc-message", HeaderValue::from_static("no"));
        trailers
    }

    #[test]
    fn text_is_read_however_it_is_cut() {
        let text = STANDARD.encode(frame(b"hello"));
        for cut in 0..text.len() {
            let mut reader = FromWeb::new(true);
            let (one, two) = text.split_at(cut);
            let mut read = reader.push(one.to_owned().into()).unwrap().to_vec();
            read.extend(reader.push(two.to_owned().into()).unwrap());
            assert_eq!((read, reader.finish()), (frame(b"hello"), Ok(())), "{cut}");
        }
        // Padding ends a piece, and no more than that.
        let mut reader = FromWeb::new(true);
        assert_eq!(reader.push("YQ==".into()).unwrap(), "a");
        assert_eq!(reader.push("Yg==".into()).unwrap(), "b");
        assert_eq!(reader.push("YQ==Yg==".into()), Err(BadBase64));
        let mut bytes = FromWeb::new(false);
        assert_eq!((bytes.push("?".into()).unwrap(), bytes.finish()), ("?".into(), Ok(())));
        for bad in ["YQ", "????", "YR==", "Y"] {
            let mut reader = FromWeb::new(true);
            assert!(reader.push(bad.into()).is_err() || reader.finish().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_frame_is_a_text_of_its_own_however_it_comes() {
        let (one, two, empty) = (frame(b"hello"), frame(&[7; 1000]), frame(b""));
        let all = [one.clone(), two.clone(), empty.clone()].concat();
        let expected = [one, two, empty].map(|frame| STANDARD.encode(frame)).concat();
        for size in [1, 2, 3, 4, 5, 7, 100, all.len()] {
            let mut writer = ToWeb::new(true);
            let mut out = Vec::new();
            for piece in all.chunks(size) {
                out.extend(writer.push(Bytes::copy_from_slice(piece)));
            }
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{size}");
            let end = STANDARD.decode(writer.finish(Some(&trailers()))).unwrap();
            assert_eq!(end, b"\x80\0\0\0\x20grpc-status:5\r\ngrpc-message:no\r\n");
        }
    }

    #[test]
    fn bytes_stay_as_they_are_and_trailers_follow() {
        let mut writer = ToWeb::new(false);
        assert_eq!(writer.push(Bytes::from_static(b"\0\0\0")), &b"\0\0\0"[..]);
        let end = writer.finish(Some(&trailers()));
        assert_eq!(end, &b"\x80\0\0\0\x20grpc-status:5\r\ngrpc-message:no\r\n"[..]);
        assert_eq!(ToWeb::new(true).finish(None), "");
        // What broke off is told as it is.
        let mut writer = ToWeb::new(true);
        assert_eq!(writer.push(Bytes::from_static(b"\0\0\0\0\x05he")), "AAAAAAVo");
        assert_eq!(writer.finish(None), "ZQ==");
    }
}

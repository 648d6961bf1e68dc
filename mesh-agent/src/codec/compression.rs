//! Content codings, piece by piece: what is compressed leaves at once, and what is expanded
//! is bounded, in each piece and against what it came from.
//!
//! Spec: RFC 1952 (gzip), RFC 7932 (brotli), RFC 8878 and RFC 9659 (zstd).

use std::io::{self, Write};

use brotli::{
    BrotliResult, CompressorWriter,
    enc::{BrotliEncoderParams, backward_references::BrotliEncoderMode},
};
use bytes::{Buf as _, Bytes};
use flate2::{
    Compression,
    write::{GzDecoder, GzEncoder},
};
use zstd::{
    stream::{
        raw::{Decoder as ZstdDecoder, Operation as _},
        write::Encoder as ZstdEncoder,
    },
    zstd_safe::{CParameter, DParameter, Strategy},
};

use super::grpc_web::BadBase64;
use crate::model::compression::{BrotliMode, Coding, CompressorLibrary, ZstdStrategy};

/// The largest piece that comes out of a [`Decoder`] at a time, about.
const PIECE_BYTES: usize = 32 << 10;
/// What a [`Decoder`] looks at at a time.
const LOOK_BYTES: usize = 4 << 10;
/// What no content may ask for: RFC 9659 §3.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// Why content can't be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodingError {
    #[error("the content is not what its coding says")]
    Invalid(#[source] io::Error),
    #[error("the content is not what its coding says: brotli")]
    Brotli,
    #[error("the content ends before its coding does")]
    Truncated,
    #[error("there is more behind the end of the content")]
    Trailing,
    #[error("the content is more than {0} times as large as what it came from")]
    Ratio(u64),
    #[error(transparent)]
    Base64(#[from] BadBase64),
    #[error("the content can't be compressed")]
    Encoder(#[source] io::Error),
}

/// Compresses.
pub struct Encoder(Encoding);

enum Encoding {
    Gzip(GzEncoder<Vec<u8>>),
    /// `None`: it has ended.
    Brotli(Option<Box<CompressorWriter<Vec<u8>>>>),
    Zstd(ZstdEncoder<'static, Vec<u8>>),
}

impl Encoder {
    /// One by that library.
    ///
    /// # Errors
    /// [`CodingError::Encoder`]: the library takes other settings only, or has no memory.
    pub fn new(library: &CompressorLibrary) -> Result<Self, CodingError> {
        Ok(Self(match *library {
            CompressorLibrary::Gzip { level } => {
                Encoding::Gzip(GzEncoder::new(Vec::new(), Compression::new(level)))
            }
            CompressorLibrary::Brotli(settings) => {
                let params = BrotliEncoderParams {
                    quality: settings.quality.into(),
                    lgwin: settings.window_bits.into(),
                    lgblock: settings.input_block_bits.into(),
                    mode: match settings.mode {
                        BrotliMode::Generic => BrotliEncoderMode::BROTLI_MODE_GENERIC,
                        BrotliMode::Text => BrotliEncoderMode::BROTLI_MODE_TEXT,
                        BrotliMode::Font => BrotliEncoderMode::BROTLI_MODE_FONT,
                    },
                    disable_literal_context_modeling: settings
                        .disable_literal_context_modeling
                        .into(),
                    ..BrotliEncoderParams::default()
                };
                let writer = CompressorWriter::with_params(Vec::new(), LOOK_BYTES, &params);
                Encoding::Brotli(Some(Box::new(writer)))
            }
            CompressorLibrary::Zstd(settings) => {
                let encoder = || {
                    let mut encoder = ZstdEncoder::new(Vec::new(), settings.level.into())?;
                    encoder.include_checksum(settings.checksum)?;
                    encoder.set_parameter(CParameter::WindowLog(20))?;
                    if let Some(strategy) = settings.strategy {
                        encoder.set_parameter(CParameter::Strategy(zstd_strategy(strategy)))?;
                    }
                    Ok(encoder)
                };
                Encoding::Zstd(encoder().map_err(CodingError::Encoder)?)
            }
        }))
    }

    /// Takes a piece; all that is known of it comes out.
    ///
    /// # Errors
    /// [`CodingError::Encoder`]
    pub fn push(&mut self, data: &[u8]) -> Result<Bytes, CodingError> {
        let out = match &mut self.0 {
            Encoding::Gzip(gzip) => flushed(gzip, data).map(|()| gzip.get_mut()),
            Encoding::Brotli(Some(brotli)) => flushed(brotli, data).map(|()| brotli.get_mut()),
            Encoding::Brotli(None) => return Ok(Bytes::new()),
            Encoding::Zstd(zstd) => flushed(zstd, data).map(|()| zstd.get_mut()),
        };
        Ok(std::mem::take(out.map_err(CodingError::Encoder)?).into())
    }

    /// The end.
    ///
    /// # Errors
    /// [`CodingError::Encoder`]
    pub fn finish(&mut self) -> Result<Bytes, CodingError> {
        let out = match &mut self.0 {
            Encoding::Gzip(gzip) => gzip.try_finish().map(|()| std::mem::take(gzip.get_mut())),
            Encoding::Brotli(brotli) => {
                Ok(brotli.take().map(|brotli| brotli.into_inner()).unwrap_or_default())
            }
            Encoding::Zstd(zstd) => zstd.do_finish().map(|()| std::mem::take(zstd.get_mut())),
        };
        out.map(Bytes::from).map_err(CodingError::Encoder)
    }
}

fn flushed(writer: &mut impl Write, data: &[u8]) -> io::Result<()> {
    writer.write_all(data)?;
    writer.flush()
}

fn zstd_strategy(strategy: ZstdStrategy) -> Strategy {
    match strategy {
        ZstdStrategy::Fast => Strategy::ZSTD_fast,
        ZstdStrategy::DFast => Strategy::ZSTD_dfast,
        ZstdStrategy::Greedy => Strategy::ZSTD_greedy,
        ZstdStrategy::Lazy => Strategy::ZSTD_lazy,
        ZstdStrategy::Lazy2 => Strategy::ZSTD_lazy2,
        ZstdStrategy::BtLazy2 => Strategy::ZSTD_btlazy2,
        ZstdStrategy::BtOpt => Strategy::ZSTD_btopt,
        ZstdStrategy::BtUltra => Strategy::ZSTD_btultra,
        ZstdStrategy::BtUltra2 => Strategy::ZSTD_btultra2,
    }
}

/// Expands what it is given, piece by piece.
pub struct Decoder {
    decoding: Decoding,
    input: Bytes,
    taken: u64,
    given: u64,
    ratio_max: u64,
    /// The coding has come to its end.
    ended: bool,
}

type BrotliState = brotli::BrotliState<
    brotli::enc::StandardAlloc,
    brotli::enc::StandardAlloc,
    brotli::enc::StandardAlloc,
>;

enum Decoding {
    Gzip(Box<GzDecoder<Vec<u8>>>),
    Brotli(Box<BrotliState>),
    Zstd(ZstdDecoder<'static>),
}

impl Decoder {
    /// One of that coding, for content that is at most `ratio_max` times as large as what it
    /// came from.
    ///
    /// # Errors
    /// [`CodingError::Encoder`]: there is no memory.
    pub fn new(coding: Coding, ratio_max: u64) -> Result<Self, CodingError> {
        let decoding = match coding {
            Coding::Gzip => Decoding::Gzip(Box::new(GzDecoder::new(Vec::new()))),
            Coding::Brotli => {
                let alloc = brotli::enc::StandardAlloc::default;
                Decoding::Brotli(Box::new(BrotliState::new(alloc(), alloc(), alloc())))
            }
            Coding::Zstd => {
                let mut zstd = ZstdDecoder::new().map_err(CodingError::Encoder)?;
                zstd.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))
                    .map_err(CodingError::Encoder)?;
                Decoding::Zstd(zstd)
            }
        };
        let (input, ended) = (Bytes::new(), false);
        Ok(Self { decoding, input, taken: 0, given: 0, ratio_max, ended })
    }

    /// Takes a piece; the one before it has to be used up.
    pub fn push(&mut self, data: Bytes) {
        self.taken += data.len() as u64;
        self.input = data;
    }

    /// The next piece that comes out; none where more has to be pushed first.
    ///
    /// # Errors
    /// [`CodingError`]: there is nothing to be had any more.
    pub fn pull(&mut self) -> Result<Option<Bytes>, CodingError> {
        loop {
            if self.ended {
                return if self.input.is_empty() { Ok(None) } else { Err(CodingError::Trailing) };
            }
            let look = &self.input[..self.input.len().min(LOOK_BYTES)];
            let (used, out, ended) = match &mut self.decoding {
                Decoding::Gzip(gzip) => gunzipped(gzip, look)?,
                Decoding::Brotli(brotli) => unbrotlied(brotli, look)?,
                Decoding::Zstd(zstd) => unzstded(zstd, look)?,
            };
            self.input.advance(used);
            self.ended = ended;
            self.given += out.len() as u64;
            if self.given > self.taken.saturating_mul(self.ratio_max) {
                return Err(CodingError::Ratio(self.ratio_max));
            }
            if !out.is_empty() {
                return Ok(Some(out.into()));
            }
            if used == 0 && !ended {
                return Ok(None);
            }
        }
    }

    /// Checks that all has come.
    ///
    /// # Errors
    /// [`CodingError`]: it has not.
    pub fn finish(&mut self) -> Result<(), CodingError> {
        // Of nothing at all comes nothing.
        if self.taken == 0 {
            return Ok(());
        }
        match &mut self.decoding {
            Decoding::Gzip(gzip) => gzip.try_finish().map_err(CodingError::Invalid),
            _ if self.ended => Ok(()),
            Decoding::Brotli(_) | Decoding::Zstd(_) => Err(CodingError::Truncated),
        }
    }
}

/// How much was used, what came of it, and whether that was all.
type Step = (usize, Vec<u8>, bool);

fn gunzipped(gzip: &mut GzDecoder<Vec<u8>>, look: &[u8]) -> Result<Step, CodingError> {
    if look.is_empty() {
        return Ok((0, Vec::new(), false));
    }
    let used = gzip.write(look).map_err(CodingError::Invalid)?;
    gzip.flush().map_err(CodingError::Invalid)?;
    // Nothing is taken that is behind the end.
    Ok((used, std::mem::take(gzip.get_mut()), used == 0))
}

fn unbrotlied(state: &mut BrotliState, look: &[u8]) -> Result<Step, CodingError> {
    let mut out = vec![0; PIECE_BYTES];
    let (mut left, mut used) = (look.len(), 0);
    let (mut room, mut written, mut total) = (out.len(), 0, 0);
    let result = brotli::BrotliDecompressStream(
        &mut left,
        &mut used,
        look,
        &mut room,
        &mut written,
        &mut out,
        &mut total,
        state,
    );
    out.truncate(written);
    match result {
        BrotliResult::ResultSuccess => Ok((used, out, true)),
        BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => Ok((used, out, false)),
        BrotliResult::ResultFailure => Err(CodingError::Brotli),
    }
}

fn unzstded(zstd: &mut ZstdDecoder<'static>, look: &[u8]) -> Result<Step, CodingError> {
    let mut out = vec![0; PIECE_BYTES];
    let status = zstd.run_on_buffers(look, &mut out).map_err(CodingError::Invalid)?;
    out.truncate(status.bytes_written);
    Ok((status.bytes_read, out, status.remaining == 0))
}

/// Expands a peer's bytes, of which the first says the coding and the second where they are
/// split: what comes out is bounded, and nothing panics.
#[doc(hidden)]
pub fn fuzz_expand(data: &[u8]) {
    const RATIO: u64 = 10;
    let [coding, split, content @ ..] = data else { return };
    let coding = [Coding::Gzip, Coding::Brotli, Coding::Zstd][usize::from(*coding) % 3];
    let Ok(mut decoder) = Decoder::new(coding, RATIO) else { return };
    let (first, rest) = content.split_at(usize::from(*split).min(content.len()));
    let mut out = 0;
    for piece in [first, rest] {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.pull() {
                Ok(Some(data)) => out += data.len() as u64,
                Ok(None) => break,
                Err(_) => return,
            }
            assert!(out <= RATIO * content.len() as u64, "{coding:?}");
        }
    }
    let _: Result<(), CodingError> = decoder.finish();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::compression::{BrotliSettings, ZstdSettings};

    fn libraries() -> [CompressorLibrary; 3] {
        [
            CompressorLibrary::Gzip { level: 6 },
            CompressorLibrary::Brotli(BrotliSettings {
                quality: 3,
                window_bits: 18,
                input_block_bits: 24,
                mode: BrotliMode::Generic,
                disable_literal_context_modeling: false,
            }),
            CompressorLibrary::Zstd(ZstdSettings {
                level: 3,
                checksum: true,
                strategy: Some(ZstdStrategy::Fast),
            }),
        ]
    }

    fn compressed(library: &CompressorLibrary, pieces: &[&[u8]]) -> Vec<u8> {
        let mut encoder = Encoder::new(library).unwrap();
        let mut out: Vec<u8> = Vec::new();
        for piece in pieces {
            out.extend(encoder.push(piece).unwrap());
        }
        out.extend(encoder.finish().unwrap());
        out
    }

    /// All that comes out, in pieces of `size`, and whether that was the end.
    fn expanded(
        coding: Coding,
        ratio: u64,
        content: &[u8],
        size: usize,
    ) -> (Vec<u8>, Result<(), CodingError>) {
        let mut decoder = Decoder::new(coding, ratio).unwrap();
        let mut out = Vec::new();
        for piece in content.chunks(size) {
            decoder.push(Bytes::copy_from_slice(piece));
            loop {
                match decoder.pull() {
                    Ok(Some(data)) => {
                        assert!(data.len() <= 4 * PIECE_BYTES, "{}", data.len());
                        out.extend(data);
                    }
                    Ok(None) => break,
                    Err(error) => return (out, Err(error)),
                }
            }
        }
        let finished = decoder.finish();
        (out, finished)
    }

    fn text() -> Vec<u8> {
        (0..20_000u32).flat_map(|n| format!("{} line {}\n", n * 7919, n).into_bytes()).collect()
    }

    #[test]
    fn what_is_compressed_comes_back_whatever_the_pieces() {
        let text = text();
        for library in libraries() {
            let content = compressed(&library, &[&text[..1], &text[1..70_000], &text[70_000..]]);
            assert!(content.len() < text.len() / 2, "{library:?}");
            for size in [1, 7, 5000, content.len()] {
                let (out, finished) = expanded(library.coding(), 100, &content, size);
                assert!(finished.is_ok(), "{library:?} {size}: {finished:?}");
                assert!(out == text, "{library:?} {size}");
            }
        }
    }

    #[test]
    fn a_piece_leaves_as_soon_as_it_comes() {
        for library in libraries() {
            let mut encoder = Encoder::new(&library).unwrap();
            let mut decoder = Decoder::new(library.coding(), 100).unwrap();
            for piece in ["one", "two", "three"] {
                decoder.push(encoder.push(piece.as_bytes()).unwrap());
                let mut out = Vec::new();
                while let Some(data) = decoder.pull().unwrap() {
                    out.extend(data);
                }
                assert_eq!(out, piece.as_bytes(), "{library:?}");
            }
        }
    }

    #[test]
    fn a_bomb_is_cut_before_it_is_large() {
        let zeros = vec![0; 8 << 20];
        for library in libraries() {
            let bomb = compressed(&library, &[&zeros]);
            let (out, finished) = expanded(library.coding(), 100, &bomb, bomb.len());
            assert!(matches!(finished, Err(CodingError::Ratio(100))), "{library:?} {finished:?}");
            assert!(out.len() <= 100 * bomb.len(), "{library:?}");
            let (out, finished) = expanded(library.coding(), 1 << 30, &bomb, bomb.len());
            assert!(finished.is_ok() && out == zeros, "{library:?}");
        }
    }

    #[test]
    fn a_window_is_bounded() {
        // The frame of a window of 2 GiB: RFC 8878, 3.1.1.1.2.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
        let (out, finished) = expanded(Coding::Zstd, 100, &frame, 100);
        assert!(out.is_empty() && matches!(finished, Err(CodingError::Invalid(_))), "{finished:?}");
    }

    #[test]
    fn what_is_not_whole_or_not_right_is_told() {
        let text = text();
        for library in libraries() {
            let coding = library.coding();
            let content = compressed(&library, &[&text]);
            let (_, finished) = expanded(coding, 100, &content[..content.len() - 1], 5000);
            assert!(finished.is_err(), "{library:?}: cut");
            let (_, finished) = expanded(coding, 100, &[&content[..], b"x"].concat(), 5000);
            assert!(finished.is_err(), "{library:?}: more behind the end");
            let (_, finished) = expanded(coding, 100, &text, 5000);
            assert!(finished.is_err(), "{library:?}: not compressed");
            let mut changed = content.clone();
            changed[content.len() / 2] ^= 0x55;
            let (out, finished) = expanded(coding, 100, &changed, 5000);
            // Brotli has no checksum.
            assert!(finished.is_err() || out != text, "{library:?}: changed");
            assert!(expanded(coding, 100, &[], 1).1.is_ok(), "{library:?}: nothing");
        }
    }
}

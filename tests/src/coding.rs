//! Content codings, whole.

use std::io::{self, Read, Write};

/// `plain` in the coding that `content-encoding` calls so.
///
/// # Panics
/// If there is no such coding.
pub fn encoded(coding: &str, plain: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
            gzip.write_all(plain).and_then(|()| gzip.finish()).expect("memory takes all")
        }
        "br" => {
            let mut brotli = brotli::CompressorWriter::new(Vec::new(), 4096, 3, 18);
            brotli.write_all(plain).expect("memory takes all");
            brotli.into_inner()
        }
        "zstd" => zstd::encode_all(plain, 3).expect("memory takes all"),
        other => panic!("{other} is no content coding"),
    }
}

/// What is in `content`; `None` for an unknown coding, and for content that is not of it.
pub fn decoded(coding: &str, content: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let read: io::Result<usize> = match coding {
        "gzip" => flate2::read::GzDecoder::new(content).read_to_end(&mut plain),
        "br" => brotli::Decompressor::new(content, 4096).read_to_end(&mut plain),
        "zstd" => zstd::Decoder::new(content).and_then(|mut zstd| zstd.read_to_end(&mut plain)),
        _ => return None,
    };
    read.is_ok().then_some(plain)
}

//! How bodies are compressed and expanded.
//!
//! Spec: `envoy.extensions.filters.http.{compressor,decompressor}.v3`,
//! `envoy.extensions.compression.*.{compressor,decompressor}.v3`.

use http::HeaderName;
use serde::Serialize;

use super::runtime::RuntimeFlag;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Coding {
    Gzip,
    Brotli,
    Zstd,
}

impl Coding {
    /// As `content-encoding` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// What compresses, and how well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CompressorLibrary {
    /// 1 to 9.
    Gzip {
        level: u32,
    },
    Brotli(BrotliSettings),
    Zstd(ZstdSettings),
}

impl CompressorLibrary {
    pub fn coding(&self) -> Coding {
        match self {
            Self::Gzip { .. } => Coding::Gzip,
            Self::Brotli(_) => Coding::Brotli,
            Self::Zstd(_) => Coding::Zstd,
        }
    }
}

/// Spec: `envoy.extensions.compression.brotli.compressor.v3.Brotli`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BrotliSettings {
    /// 0 to 11.
    pub quality: u8,
    /// 10 to 24.
    pub window_bits: u8,
    /// 16 to 24.
    pub input_block_bits: u8,
    pub mode: BrotliMode,
    pub disable_literal_context_modeling: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BrotliMode {
    Generic,
    Text,
    Font,
}

/// Spec: `envoy.extensions.compression.zstd.compressor.v3.Zstd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ZstdSettings {
    /// 1 to 22.
    pub level: u8,
    pub checksum: bool,
    /// `None`: as the level has it.
    pub strategy: Option<ZstdStrategy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ZstdStrategy {
    Fast,
    DFast,
    Greedy,
    Lazy,
    Lazy2,
    BtLazy2,
    BtOpt,
    BtUltra,
    BtUltra2,
}

/// Spec: `envoy.extensions.filters.http.compressor.v3.Compressor`.
#[derive(Debug, Clone, Serialize)]
pub struct Compressor {
    pub library: CompressorLibrary,
    /// Whether it goes before others that clients like as well.
    pub choose_first: bool,
    /// `None`: requests are left alone.
    pub request: Option<Compressible>,
    pub response: Compressible,
    pub disable_on_etag: bool,
    /// Strong entity tags become weak; else they go.
    pub weaken_etag: bool,
    pub remove_accept_encoding: bool,
    pub uncompressible_codes: Vec<u16>,
}

/// What is compressed of one direction.
#[derive(Debug, Clone, Serialize)]
pub struct Compressible {
    pub enabled: RuntimeFlag,
    pub min_content_length: u64,
    /// Media types, in lower case.
    pub content_types: Vec<String>,
}

/// What a route says: `CompressorPerRoute`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CompressorPerRoute {
    Disabled,
    Overrides {
        /// The outer `None`: the direction is as the filter has it.
        response: Option<Option<bool>>,
        library: Option<CompressorLibrary>,
    },
}

/// Spec: `envoy.extensions.filters.http.decompressor.v3.Decompressor`.
#[derive(Debug, Clone, Serialize)]
pub struct Decompressor {
    pub coding: Coding,
    /// How many times as large content may become.
    pub ratio_max: u64,
    pub request: Expandable,
    pub response: Expandable,
    /// Whether upstreams are told that they may compress.
    pub advertise: bool,
    /// The trailers that tell how large content was and has become.
    #[serde(skip)]
    pub trailers: [HeaderName; 2],
}

/// What is expanded of one direction.
#[derive(Debug, Clone, Serialize)]
pub struct Expandable {
    pub enabled: RuntimeFlag,
    pub ignore_no_transform: bool,
}

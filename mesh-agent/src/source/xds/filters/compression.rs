//! Spec: `envoy.extensions.filters.http.{compressor,decompressor}.v3`,
//! `envoy.extensions.compression.*.{compressor,decompressor}.v3`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::core::v3::TypedExtensionConfig,
        extensions::{
            compression::{
                brotli::{
                    compressor::v3::{Brotli, brotli::EncoderMode},
                    decompressor::v3::Brotli as Unbrotli,
                },
                gzip::{
                    compressor::v3::{Gzip, gzip::CompressionStrategy},
                    decompressor::v3::Gzip as Gunzip,
                },
                zstd::{
                    compressor::v3::{Zstd, zstd::Strategy},
                    decompressor::v3::Zstd as Unzstd,
                },
            },
            filters::http::{
                compressor::v3::{
                    Compressor as PbCompressor, CompressorOverrides,
                    CompressorPerRoute as PbPerRoute, ResponseDirectionOverrides,
                    compressor::{
                        CommonDirectionConfig, RequestDirectionConfig, ResponseDirectionConfig,
                    },
                    compressor_per_route::Override,
                },
                decompressor::v3::{
                    Decompressor as PbDecompressor,
                    decompressor::{
                        CommonDirectionConfig as PbExpandable,
                        RequestDirectionConfig as RequestExpandable,
                        ResponseDirectionConfig as ResponseExpandable,
                    },
                },
            },
        },
    },
    google::protobuf::{Any, UInt32Value},
};
use http::HeaderName;

use super::super::{
    common,
    reject::{Decoder, unsupported},
};
use crate::model::{
    compression::{
        BrotliMode, BrotliSettings, Coding, Compressible, Compressor, CompressorLibrary,
        CompressorPerRoute, Decompressor, Expandable, ZstdSettings, ZstdStrategy,
    },
    filter::{HttpFilter, RouteFilterConfig},
};

const MIN_CONTENT_LENGTH_DEFAULT: u32 = 30;
/// What is compressed where nothing is said.
const CONTENT_TYPES: [&str; 18] = [
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
];
const RATIO_DEFAULT: u32 = 100;
const RATIO_MAX: u32 = 1032;

#[expect(deprecated, reason = "control planes still send them")]
pub(super) fn compressor(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let PbCompressor {
        content_length,
        content_type,
        disable_on_etag_header,
        remove_accept_encoding_header,
        runtime_enabled,
        compressor_library,
        request_direction_config,
        response_direction_config,
        choose_first,
    } = common::unpack(d, any)?;
    let library = library(d, compressor_library);
    let request = match request_direction_config {
        None => Some(None),
        Some(RequestDirectionConfig { common_config }) => {
            d.field("request_direction_config", |d| direction(d, common_config)).map(Some)
        }
    };
    // As Envoy: what is said of responses in two places is what the newer one says.
    let response = match response_direction_config {
        Some(value) => d.field("response_direction_config", |d| {
            let ResponseDirectionConfig {
                common_config,
                disable_on_etag_header,
                weaken_etag_on_compress,
                remove_accept_encoding_header,
                uncompressible_response_codes,
                status_header_enabled,
            } = value;
            unsupported!(d; status_header_enabled);
            let codes = d.all("uncompressible_response_codes", uncompressible_response_codes, code);
            let direction = direction(d, common_config);
            let etag = (disable_on_etag_header, weaken_etag_on_compress);
            Some((direction?, etag, remove_accept_encoding_header, codes?))
        }),
        None => {
            let direction = Compressible {
                enabled: common::feature_flag(runtime_enabled),
                min_content_length: length(content_length),
                content_types: content_types(content_type),
            };
            let etag = (disable_on_etag_header, false);
            Some((direction, etag, remove_accept_encoding_header, Vec::new()))
        }
    };
    let (library, request) = (library?, request?);
    let (response, (disable_on_etag, weaken_etag), remove_accept_encoding, codes) = response?;
    Some(HttpFilter::Compressor(Arc::new(Compressor {
        library,
        choose_first,
        request,
        response,
        disable_on_etag,
        weaken_etag,
        remove_accept_encoding,
        uncompressible_codes: codes,
    })))
}

fn code(d: &mut Decoder, code: u32) -> Option<u16> {
    match u16::try_from(code) {
        Ok(code @ 200..600) => Some(code),
        _ => d.refused(format!("{code} is not within 200 to 599")),
    }
}

#[expect(deprecated, reason = "control planes still send them")]
fn direction(d: &mut Decoder, value: Option<CommonDirectionConfig>) -> Option<Compressible> {
    let CommonDirectionConfig { enabled, min_content_length, content_type, content_type_matcher } =
        value.unwrap_or_default();
    if !content_type_matcher.is_empty() {
        d.field("common_config", |d| d.refuse_field("content_type_matcher", "is not supported"));
        return None;
    }
    Some(Compressible {
        enabled: common::feature_flag(enabled),
        min_content_length: length(min_content_length),
        content_types: content_types(content_type),
    })
}

fn length(value: Option<UInt32Value>) -> u64 {
    value.map_or(MIN_CONTENT_LENGTH_DEFAULT, |length| length.value).into()
}

fn content_types(said: Vec<String>) -> Vec<String> {
    match said.is_empty() {
        true => CONTENT_TYPES.map(str::to_owned).to_vec(),
        false => said.into_iter().map(|name| name.to_ascii_lowercase()).collect(),
    }
}

pub(super) fn compressor_route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let PbPerRoute { r#override } = common::unpack(d, any)?;
    let said = match r#override {
        Some(Override::Disabled(true)) => CompressorPerRoute::Disabled,
        Some(Override::Disabled(false)) => {
            return d.field("disabled", |d| d.refused("can only be true"));
        }
        Some(Override::Overrides(value)) => d.field("overrides", |d| {
            let CompressorOverrides { response_direction_config, compressor_library } = value;
            let response = response_direction_config.map(|value| {
                let ResponseDirectionOverrides { remove_accept_encoding_header } = value;
                remove_accept_encoding_header.map(|remove| remove.value)
            });
            let library = match compressor_library {
                None => None,
                Some(value) => Some(library(d, Some(value))?),
            };
            Some(CompressorPerRoute::Overrides { response, library })
        })?,
        None => return d.refused("has neither disabled nor overrides"),
    };
    Some(RouteFilterConfig::Compressor(Arc::new(said)))
}

fn library(d: &mut Decoder, value: Option<TypedExtensionConfig>) -> Option<CompressorLibrary> {
    d.field("compressor_library", |d| {
        let Some(TypedExtensionConfig { name, typed_config }) = value else {
            return d.refused("is missing");
        };
        match typed_config {
            Some(any) if common::is::<Gzip>(&any) => gzip(d, &any),
            Some(any) if common::is::<Brotli>(&any) => brotli(d, &any),
            Some(any) if common::is::<Zstd>(&any) => zstd(d, &any),
            other => {
                let type_name = other.as_ref().map(common::type_name).unwrap_or_default();
                common::refuse_extension(d, &name, &type_name);
                None
            }
        }
    })
}

/// How much memory is used is the library's own affair; what is asked for has to be sane.
fn gzip(d: &mut Decoder, any: &Any) -> Option<CompressorLibrary> {
    let Gzip { memory_level, compression_level, compression_strategy, window_bits, chunk_size } =
        common::unpack(d, any)?;
    let memory = within(d, "memory_level", memory_level, 1..=9, 5);
    let window = within(d, "window_bits", window_bits, 9..=15, 12);
    let chunk = self::chunk_size(d, chunk_size);
    if compression_strategy != CompressionStrategy::DefaultStrategy as i32 {
        d.refuse_field("compression_strategy", "is not supported");
    }
    let level = match u32::try_from(compression_level) {
        Ok(0) => Some(6),
        Ok(level @ 1..=9) => Some(level),
        _ => d.field("compression_level", |d| d.refused(format!("{compression_level} is unknown"))),
    };
    memory?;
    window?;
    chunk?;
    Some(CompressorLibrary::Gzip { level: level? })
}

fn brotli(d: &mut Decoder, any: &Any) -> Option<CompressorLibrary> {
    let Brotli {
        quality,
        encoder_mode,
        window_bits,
        input_block_bits,
        chunk_size,
        disable_literal_context_modeling,
    } = common::unpack(d, any)?;
    let quality = within(d, "quality", quality, 0..=11, 3);
    let window_bits = within(d, "window_bits", window_bits, 10..=24, 18);
    let input_block_bits = within(d, "input_block_bits", input_block_bits, 16..=24, 24);
    let chunk = self::chunk_size(d, chunk_size);
    let mode = match EncoderMode::try_from(encoder_mode) {
        Ok(EncoderMode::Default | EncoderMode::Generic) => Some(BrotliMode::Generic),
        Ok(EncoderMode::Text) => Some(BrotliMode::Text),
        Ok(EncoderMode::Font) => Some(BrotliMode::Font),
        Err(_) => d.field("encoder_mode", |d| d.refused(format!("{encoder_mode} is unknown"))),
    };
    chunk?;
    Some(CompressorLibrary::Brotli(BrotliSettings {
        quality: quality?,
        window_bits: window_bits?,
        input_block_bits: input_block_bits?,
        mode: mode?,
        disable_literal_context_modeling,
    }))
}

fn zstd(d: &mut Decoder, any: &Any) -> Option<CompressorLibrary> {
    let Zstd { compression_level, enable_checksum, strategy, dictionary, chunk_size } =
        common::unpack(d, any)?;
    unsupported!(d; dictionary);
    let level = within(d, "compression_level", compression_level, 1..=22, 3);
    let chunk = self::chunk_size(d, chunk_size);
    let strategy = match Strategy::try_from(strategy) {
        Ok(Strategy::Default) => Some(None),
        Ok(Strategy::Fast) => Some(Some(ZstdStrategy::Fast)),
        Ok(Strategy::Dfast) => Some(Some(ZstdStrategy::DFast)),
        Ok(Strategy::Greedy) => Some(Some(ZstdStrategy::Greedy)),
        Ok(Strategy::Lazy) => Some(Some(ZstdStrategy::Lazy)),
        Ok(Strategy::Lazy2) => Some(Some(ZstdStrategy::Lazy2)),
        Ok(Strategy::Btlazy2) => Some(Some(ZstdStrategy::BtLazy2)),
        Ok(Strategy::Btopt) => Some(Some(ZstdStrategy::BtOpt)),
        Ok(Strategy::Btultra) => Some(Some(ZstdStrategy::BtUltra)),
        Ok(Strategy::Btultra2) => Some(Some(ZstdStrategy::BtUltra2)),
        Err(_) => d.field("strategy", |d| d.refused(format!("{strategy} is unknown"))),
    };
    chunk?;
    let (level, strategy) = (level?, strategy?);
    Some(CompressorLibrary::Zstd(ZstdSettings { level, checksum: enable_checksum, strategy }))
}

fn chunk_size(d: &mut Decoder, value: Option<UInt32Value>) -> Option<u32> {
    let within = value.map_or(4096, |value| value.value);
    if !(4096..=65_536).contains(&within) {
        return d
            .field("chunk_size", |d| d.refused(format!("{within} is not within 4096 to 65536")));
    }
    Some(within)
}

fn within(
    d: &mut Decoder,
    field: &str,
    value: Option<UInt32Value>,
    range: std::ops::RangeInclusive<u8>,
    default: u8,
) -> Option<u8> {
    let Some(UInt32Value { value }) = value else { return Some(default) };
    match u8::try_from(value) {
        Ok(value) if range.contains(&value) => Some(value),
        _ => d.field(field, |d| {
            d.refused(format!("{value} is not within {} to {}", range.start(), range.end()))
        }),
    }
}

pub(super) fn decompressor(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let PbDecompressor {
        decompressor_library,
        request_direction_config,
        response_direction_config,
    } = common::unpack(d, any)?;
    let library = d.field("decompressor_library", |d| {
        let Some(TypedExtensionConfig { name, typed_config }) = decompressor_library else {
            return d.refused("is missing");
        };
        let (coding, ratio_max) = match typed_config {
            Some(any) if common::is::<Gunzip>(&any) => {
                let Gunzip { window_bits, chunk_size, max_inflate_ratio } =
                    common::unpack(d, &any)?;
                let window = within(d, "window_bits", window_bits, 9..=15, 15);
                let chunk = self::chunk_size(d, chunk_size);
                window?;
                chunk?;
                (Coding::Gzip, ratio(d, max_inflate_ratio)?)
            }
            Some(any) if common::is::<Unbrotli>(&any) => {
                // How memory is used is the library's own affair.
                let Unbrotli { disable_ring_buffer_reallocation: _, chunk_size } =
                    common::unpack(d, &any)?;
                self::chunk_size(d, chunk_size)?;
                (Coding::Brotli, RATIO_DEFAULT)
            }
            Some(any) if common::is::<Unzstd>(&any) => {
                let Unzstd { dictionaries, chunk_size } = common::unpack(d, &any)?;
                unsupported!(d; dictionaries);
                self::chunk_size(d, chunk_size)?;
                (Coding::Zstd, RATIO_DEFAULT)
            }
            other => {
                let type_name = other.as_ref().map(common::type_name).unwrap_or_default();
                common::refuse_extension(d, &name, &type_name);
                return None;
            }
        };
        let trailer = |what: &str| {
            HeaderName::try_from(format!("x-envoy-decompressor-{name}-{what}-bytes")).ok()
        };
        match (trailer("compressed"), trailer("uncompressed")) {
            (Some(compressed), Some(uncompressed)) => {
                Some((coding, ratio_max, [compressed, uncompressed]))
            }
            _ => d.field("name", |d| d.refused(format!("`{name}` can't be in a trailer's name"))),
        }
    });
    let RequestExpandable { common_config: request, advertise_accept_encoding } =
        request_direction_config.unwrap_or_default();
    let ResponseExpandable { common_config: response } =
        response_direction_config.unwrap_or_default();
    let (coding, ratio_max, trailers) = library?;
    Some(HttpFilter::Decompressor(Arc::new(Decompressor {
        coding,
        ratio_max: ratio_max.into(),
        request: expandable(request),
        response: expandable(response),
        advertise: advertise_accept_encoding.is_none_or(|advertise| advertise.value),
        trailers,
    })))
}

fn expandable(value: Option<PbExpandable>) -> Expandable {
    let PbExpandable { enabled, ignore_no_transform_header } = value.unwrap_or_default();
    Expandable {
        enabled: common::feature_flag(enabled),
        ignore_no_transform: ignore_no_transform_header,
    }
}

fn ratio(d: &mut Decoder, value: Option<UInt32Value>) -> Option<u32> {
    match value.map_or(RATIO_DEFAULT, |ratio| ratio.value) {
        ratio @ 1..=RATIO_MAX => Some(ratio),
        ratio => d.field("max_inflate_ratio", |d| {
            d.refused(format!("{ratio} is not within 1 to {RATIO_MAX}"))
        }),
    }
}

pub(super) fn decompressor_route(d: &mut Decoder, _: &Any) -> Option<RouteFilterConfig> {
    d.refused("routes can't tell decompressor anything")
}

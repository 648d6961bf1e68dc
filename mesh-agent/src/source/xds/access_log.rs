//! Access logs of connection managers, of `tcp_proxy` and of listeners.
//!
//! Spec: `envoy/config/accesslog/v3/accesslog.proto`, `envoy/extensions/access_loggers/*/v3`,
//! `envoy/config/core/v3/substitution_format_string.proto`.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::{
            accesslog::v3::{
                AccessLog as PbAccessLog, AccessLogFilter, AndFilter, ComparisonFilter,
                GrpcStatusFilter, HeaderFilter, OrFilter, ResponseFlagFilter, RuntimeFilter,
                access_log::ConfigType, access_log_filter::FilterSpecifier, comparison_filter::Op,
            },
            core::v3::{
                RuntimeUInt32, SubstitutionFormatString,
                substitution_format_string::Format as PbFormat,
            },
        },
        extensions::access_loggers::{
            file::v3::{FileAccessLog, file_access_log::AccessLogFormat as OfFile},
            stream::v3::{
                StderrAccessLog, StdoutAccessLog, stderr_access_log::AccessLogFormat as OfStderr,
                stdout_access_log::AccessLogFormat as OfStdout,
            },
        },
    },
    google::protobuf::{Any, Struct, Value, value::Kind},
};

use super::{
    common, matchers,
    reject::{Decoder, unsupported},
};
use crate::{
    model::{
        access_log::{
            AccessLog, AccessLogs, Comparison, ComparisonOp, DEFAULT_FORMAT, JsonFormat, Line,
            LineFormat, LogFilter, LogSink,
        },
        format::Format,
        metadata::from_json,
        runtime::{Fraction, RuntimeFraction},
    },
    observe::flags::ResponseFlag,
};

/// How deep filters and JSON may be nested.
const DEPTH_MAX: usize = 16;

pub(super) fn access_logs(d: &mut Decoder, logs: Vec<PbAccessLog>) -> Option<Vec<AccessLog>> {
    d.all("access_log", logs, access_log)
}

/// Of connections, which have no request to look at.
pub(super) fn of_connections(d: &mut Decoder, logs: Vec<PbAccessLog>) -> Option<Arc<AccessLogs>> {
    let logs = d.all("access_log", logs, |d, value| {
        let log = access_log(d, value)?;
        if log.filter.as_ref().is_some_and(looks_at_requests) {
            return d.field("filter", |d| d.refused("looks at requests, and there are none"));
        }
        Some(log)
    });
    Some(Arc::new(logs?.into()))
}

fn looks_at_requests(filter: &LogFilter) -> bool {
    match filter {
        LogFilter::Header(_) | LogFilter::Grpc { .. } => true,
        LogFilter::And(all) | LogFilter::Or(all) => all.iter().any(looks_at_requests),
        LogFilter::Status(_)
        | LogFilter::Duration(_)
        | LogFilter::Flags(_)
        | LogFilter::Runtime(_) => false,
    }
}

fn access_log(d: &mut Decoder, value: PbAccessLog) -> Option<AccessLog> {
    let PbAccessLog { name, filter, config_type } = value;
    let filter = match filter {
        None => Some(None),
        Some(value) => d.field("filter", |d| self::filter(d, value, 0)).map(Some),
    };
    let Some(ConfigType::TypedConfig(any)) = config_type else {
        common::refuse_extension(d, &name, "");
        return None;
    };
    let (sink, line) = d.field("typed_config", |d| logger(d, &name, &any))?;
    Some(AccessLog { sink, line, filter: filter? })
}

fn logger(d: &mut Decoder, name: &str, any: &Any) -> Option<(LogSink, Line)> {
    if common::is::<FileAccessLog>(any) {
        let FileAccessLog { path, access_log_format } = common::unpack(d, any)?;
        let sink = d.field("path", |d| match path.as_str() {
            "/dev/stdout" => Some(LogSink::Stdout),
            "/dev/stderr" => Some(LogSink::Stderr),
            path if path.starts_with('/') && !path.contains('\0') => {
                Some(LogSink::File(path.into()))
            }
            "" => d.refused("is missing"),
            path => d.refused(format!("`{path}` is not an absolute path")),
        });
        #[expect(deprecated, reason = "control planes still send them")]
        let line = match access_log_format {
            None => default_line(d),
            Some(OfFile::Format(text)) => {
                d.field("format", |d| self::text(d, &text)).map(|format| line(format, false))
            }
            // Makes a string of each value.
            Some(OfFile::JsonFormat(_)) => d.not_supported("json_format"),
            Some(OfFile::TypedJsonFormat(value)) => {
                let format = d.field("typed_json_format", |d| object(d, value, 0));
                format.map(|format| line(LineFormat::Json(format), false))
            }
            Some(OfFile::LogFormat(value)) => d.field("log_format", |d| self::format(d, value)),
        };
        return Some((sink?, line?));
    }
    if common::is::<StdoutAccessLog>(any) {
        let StdoutAccessLog { access_log_format } = common::unpack(d, any)?;
        let line = match access_log_format {
            None => default_line(d),
            Some(OfStdout::LogFormat(value)) => d.field("log_format", |d| self::format(d, value)),
        };
        return Some((LogSink::Stdout, line?));
    }
    if common::is::<StderrAccessLog>(any) {
        let StderrAccessLog { access_log_format } = common::unpack(d, any)?;
        let line = match access_log_format {
            None => default_line(d),
            Some(OfStderr::LogFormat(value)) => d.field("log_format", |d| self::format(d, value)),
        };
        return Some((LogSink::Stderr, line?));
    }
    common::refuse_extension(d, name, &common::type_name(any));
    None
}

fn line(format: LineFormat, omit_empty: bool) -> Line {
    Line { format, omit_empty }
}

fn default_line(d: &mut Decoder) -> Option<Line> {
    text(d, DEFAULT_FORMAT).map(|format| line(format, false))
}

fn text(d: &mut Decoder, text: &str) -> Option<LineFormat> {
    parse(d, text).map(LineFormat::Text)
}

fn parse(d: &mut Decoder, text: &str) -> Option<Format> {
    match text.parse() {
        Ok(format) => Some(format),
        Err(error) => d.refused(format!("`{text}`: {error}")),
    }
}

/// A format of a line or of a body.
pub(super) fn format(d: &mut Decoder, value: SubstitutionFormatString) -> Option<Line> {
    let SubstitutionFormatString {
        omit_empty_values,
        content_type,
        formatters,
        // Properties are sorted, always.
        json_format_options: _,
        format,
    } = value;
    unsupported!(d; content_type, formatters);
    #[expect(deprecated, reason = "control planes still send it")]
    let format = match format {
        Some(PbFormat::TextFormat(text)) => d.field("text_format", |d| self::text(d, &text)),
        Some(PbFormat::JsonFormat(value)) => {
            d.field("json_format", |d| object(d, value, 0)).map(LineFormat::Json)
        }
        Some(PbFormat::TextFormatSource(value)) => d.field("text_format_source", |d| {
            let text = common::inline(d, value)?;
            match std::str::from_utf8(&text) {
                Ok(text) => self::text(d, text),
                Err(_) => d.refused("is not UTF-8"),
            }
        }),
        None => d.refused("has no format"),
    };
    Some(line(format?, omit_empty_values))
}

fn object(d: &mut Decoder, value: Struct, depth: usize) -> Option<JsonFormat> {
    if depth > DEPTH_MAX {
        return d.refused("is nested too deep");
    }
    let mut fields: Vec<_> = value.fields.into_iter().collect();
    fields.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let mut whole = Some(Vec::new());
    for (name, value) in fields {
        let decoded = d.field(&name, |d| json(d, value, depth + 1));
        match (&mut whole, decoded) {
            (Some(list), Some(decoded)) => list.push((name.clone(), decoded)),
            _ => whole = None,
        }
    }
    whole.map(JsonFormat::Object)
}

fn json(d: &mut Decoder, value: Value, depth: usize) -> Option<JsonFormat> {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Some(JsonFormat::Literal(serde_json::Value::Null)),
        Some(Kind::BoolValue(value)) => Some(JsonFormat::Literal(value.into())),
        Some(Kind::NumberValue(number)) => Some(JsonFormat::Literal(from_json(number.into()))),
        Some(Kind::StringValue(text)) => parse(d, &text).map(JsonFormat::Text),
        Some(Kind::StructValue(fields)) => object(d, fields, depth),
        Some(Kind::ListValue(_)) if depth > DEPTH_MAX => d.refused("is nested too deep"),
        Some(Kind::ListValue(list)) => {
            let mut whole = Some(Vec::new());
            for (i, value) in list.values.into_iter().enumerate() {
                let decoded = d.within_index(i, |d| json(d, value, depth + 1));
                match (&mut whole, decoded) {
                    (Some(list), Some(decoded)) => list.push(decoded),
                    _ => whole = None,
                }
            }
            whole.map(JsonFormat::List)
        }
    }
}

/// Which requests it is for.
pub(super) fn filter(d: &mut Decoder, value: AccessLogFilter, depth: usize) -> Option<LogFilter> {
    if depth > DEPTH_MAX {
        return d.refused("is nested too deep");
    }
    let all = |d: &mut Decoder, filters: Vec<AccessLogFilter>| {
        if filters.len() < 2 {
            return d.field("filters", |d| d.refused("has fewer than two"));
        }
        d.all("filters", filters, |d, value| filter(d, value, depth + 1))
    };
    match value.filter_specifier {
        Some(FilterSpecifier::StatusCodeFilter(value)) => d
            .field("status_code_filter", |d| comparison(d, value.comparison))
            .map(LogFilter::Status),
        Some(FilterSpecifier::DurationFilter(value)) => {
            d.field("duration_filter", |d| comparison(d, value.comparison)).map(LogFilter::Duration)
        }
        Some(FilterSpecifier::HeaderFilter(HeaderFilter { header })) => {
            d.field("header_filter", |d| match header {
                None => d.field("header", |d| d.refused("is missing")),
                Some(value) => d
                    .field("header", |d| matchers::header(d, value))
                    .map(|header| LogFilter::Header(Box::new(header))),
            })
        }
        Some(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter { flags })) => {
            d.field("response_flag_filter", |d| {
                let flags = d.all("flags", flags, |d, flag| match ResponseFlag::is_known(&flag) {
                    true => Some(flag),
                    false => d.refused(format!("{flag} is not supported")),
                });
                flags.map(LogFilter::Flags)
            })
        }
        Some(FilterSpecifier::GrpcStatusFilter(GrpcStatusFilter { statuses, exclude })) => {
            d.field("grpc_status_filter", |d| {
                let statuses =
                    d.all("statuses", statuses, |d, status| match u32::try_from(status) {
                        Ok(status @ 0..=16) => Some(status),
                        _ => d.refused(format!("{status} is unknown")),
                    });
                Some(LogFilter::Grpc { statuses: statuses?, exclude })
            })
        }
        Some(FilterSpecifier::RuntimeFilter(RuntimeFilter {
            runtime_key,
            percent_sampled,
            use_independent_randomness: _,
        })) => d.field("runtime_filter", |d| {
            let default = match percent_sampled {
                None => Some(Fraction { numerator: 0, denominator: 100 }),
                Some(value) => d.field("percent_sampled", |d| common::fraction(d, value)),
            };
            if runtime_key.is_empty() {
                d.refuse_field("runtime_key", "is missing");
            }
            Some(LogFilter::Runtime(RuntimeFraction { key: runtime_key, default: default? }))
        }),
        Some(FilterSpecifier::AndFilter(AndFilter { filters })) => {
            d.field("and_filter", |d| all(d, filters)).map(LogFilter::And)
        }
        Some(FilterSpecifier::OrFilter(OrFilter { filters })) => {
            d.field("or_filter", |d| all(d, filters)).map(LogFilter::Or)
        }
        Some(FilterSpecifier::NotHealthCheckFilter(_)) => {
            d.not_supported("not_health_check_filter")
        }
        Some(FilterSpecifier::TraceableFilter(_)) => d.not_supported("traceable_filter"),
        Some(FilterSpecifier::ExtensionFilter(_)) => d.not_supported("extension_filter"),
        Some(FilterSpecifier::MetadataFilter(_)) => d.not_supported("metadata_filter"),
        Some(FilterSpecifier::LogTypeFilter(_)) => d.not_supported("log_type_filter"),
        None => d.refused("is empty"),
    }
}

fn comparison(d: &mut Decoder, value: Option<ComparisonFilter>) -> Option<Comparison> {
    d.field("comparison", |d| {
        let Some(ComparisonFilter { op, value }) = value else { return d.refused("is missing") };
        let op = match Op::try_from(op) {
            Ok(Op::Eq) => Some(ComparisonOp::Equal),
            Ok(Op::Ge) => Some(ComparisonOp::AtLeast),
            Ok(Op::Le) => Some(ComparisonOp::AtMost),
            Ok(Op::Ne) => Some(ComparisonOp::NotEqual),
            Err(_) => d.field("op", |d| d.refused("is unknown")),
        };
        let Some(RuntimeUInt32 { default_value, runtime_key }) = value else {
            return d.field("value", |d| d.refused("is missing"));
        };
        Some(Comparison { op: op?, value: default_value, runtime_key })
    })
}

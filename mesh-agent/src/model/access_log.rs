//! Lines that a connection manager writes about its requests.
//!
//! Spec: `envoy/config/accesslog/v3/accesslog.proto`,
//! `envoy/config/core/v3/substitution_format_string.proto`.

use std::sync::Arc;

use serde::Serialize;

use super::{
    format::{Format, Operator, PlainOperator, Values},
    route::HeaderMatcher,
    runtime::RuntimeFraction,
};

/// Envoy's format where none is given.
pub const DEFAULT_FORMAT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"\n",
);

/// The access logs of a connection manager.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct AccessLogs {
    logs: Vec<AccessLog>,
    #[serde(skip)]
    reads: Reads,
}

/// What logs read of an exchange, for which it has to be kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reads {
    pub request: bool,
    pub response: bool,
    pub trailers: bool,
}

/// One access log.
#[derive(Debug, Clone, Serialize)]
pub struct AccessLog {
    pub sink: LogSink,
    pub line: Line,
    /// `None`: every request has a line.
    pub filter: Option<LogFilter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSink {
    Stdout,
    Stderr,
    /// An absolute path; appended to.
    File(Arc<str>),
}

/// What a line says.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    pub format: LineFormat,
    /// Whether what has no value is left out; else it is `-`, or `null` in JSON.
    pub omit_empty: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LineFormat {
    /// As it is, without a line feed of its own.
    Text(Format),
    /// An object on a line.
    Json(JsonFormat),
}

/// A JSON value with places to fill in.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum JsonFormat {
    Text(Format),
    /// A number, a boolean or null.
    Literal(serde_json::Value),
    /// By name, sorted.
    Object(Vec<(String, JsonFormat)>),
    List(Vec<JsonFormat>),
}

/// Which requests have a line.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFilter {
    /// 0 where there was no response.
    Status(Comparison),
    /// In milliseconds.
    Duration(Comparison),
    Header(Box<HeaderMatcher>),
    /// One of these, or any at all where there are none; Envoy's short names.
    Flags(Vec<String>),
    Grpc {
        statuses: Vec<u32>,
        exclude: bool,
    },
    Runtime(RuntimeFraction),
    And(Vec<LogFilter>),
    Or(Vec<LogFilter>),
}

/// Spec: `envoy.config.accesslog.v3.ComparisonFilter`.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub op: ComparisonOp,
    pub value: u32,
    /// Whose value goes before the other, unless it is empty.
    pub runtime_key: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ComparisonOp {
    Equal,
    NotEqual,
    AtLeast,
    AtMost,
}

impl ComparisonOp {
    /// Whether `value` is so, compared with `with`.
    pub fn holds(self, value: u64, with: u64) -> bool {
        match self {
            Self::Equal => value == with,
            Self::NotEqual => value != with,
            Self::AtLeast => value >= with,
            Self::AtMost => value <= with,
        }
    }
}

impl Line {
    /// Appends it, filled in.
    pub fn append(&self, values: &impl Values, out: &mut Vec<u8>) {
        match &self.format {
            LineFormat::Text(format) => {
                format.append(values, if self.omit_empty { "" } else { "-" }, out);
            }
            LineFormat::Json(format) => {
                let value = format.value(values, self.omit_empty);
                // Writing to a Vec does not fail, and every key is text.
                let _ = serde_json::to_writer(&mut *out, &value);
                out.push(b'\n');
            }
        }
    }

    /// Appends it as a log's line: only the format ends it, no value does.
    pub fn append_to_log(&self, values: &impl Values, out: &mut Vec<u8>) {
        match &self.format {
            LineFormat::Text(_) => self.append(&OneLine(values), out),
            // JSON escapes them itself.
            LineFormat::Json(_) => self.append(values, out),
        }
    }
}

/// Values whose control bytes are escaped as in Rust (`\n`, `\x1b`), but for tabs, which
/// headers may hold. Envoy writes them as they are, so that what is noted of a token or said
/// by a server that is asked makes lines of its own.
struct OneLine<'a, V>(&'a V);

impl<V: Values> Values for OneLine<'_, V> {
    fn append(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
        let breaks = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
        let start = out.len();
        let there = self.0.append(operator, out);
        if out[start..].iter().any(breaks) {
            for byte in out.split_off(start) {
                if breaks(&byte) {
                    out.extend(byte.escape_ascii());
                } else {
                    out.push(byte);
                }
            }
        }
        there
    }
}

impl JsonFormat {
    /// The value, filled in. What is one operator and nothing else keeps its type.
    pub fn value(&self, values: &impl Values, omit_empty: bool) -> serde_json::Value {
        use serde_json::Value;
        match self {
            Self::Literal(value) => value.clone(),
            Self::List(items) => {
                let items = items.iter().map(|item| item.value(values, omit_empty));
                items.filter(|item| !(omit_empty && is_empty(item))).collect()
            }
            Self::Object(fields) => {
                let fields = fields.iter().map(|(name, of)| (name, of.value(values, omit_empty)));
                let kept = fields.filter(|(_, value)| !(omit_empty && is_empty(value)));
                Value::Object(kept.map(|(name, value)| (name.clone(), value)).collect())
            }
            Self::Text(format) => {
                let mut text = Vec::new();
                let Some(only) = format.only_operator() else {
                    format.append(values, if omit_empty { "" } else { "-" }, &mut text);
                    return String::from_utf8_lossy(&text).into();
                };
                if !format.append_only(values, &mut text) {
                    return Value::Null;
                }
                match only {
                    Operator::Plain(plain) if plain.is_number() => {
                        serde_json::from_slice(&text).unwrap_or(Value::Null)
                    }
                    // What a client has in its token, say, chooses no type.
                    Operator::DynamicMetadata { .. } if !values.is_text(only) => {
                        serde_json::from_slice(&text)
                            .unwrap_or_else(|_| String::from_utf8_lossy(&text).into())
                    }
                    _ => String::from_utf8_lossy(&text).into(),
                }
            }
        }
    }

    /// Every operator in it.
    pub fn operators(&self, of: &mut impl FnMut(&Operator)) {
        match self {
            Self::Text(format) => format.operators().for_each(of),
            Self::Literal(_) => {}
            Self::Object(fields) => fields.iter().for_each(|(_, value)| value.operators(of)),
            Self::List(items) => items.iter().for_each(|value| value.operators(of)),
        }
    }
}

/// What is left out where empty values are.
fn is_empty(value: &serde_json::Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}

// === impl AccessLogs ===

impl AccessLogs {
    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, AccessLog> {
        self.logs.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// What all of them read together.
    pub fn reads(&self) -> Reads {
        self.reads
    }
}

impl From<Vec<AccessLog>> for AccessLogs {
    fn from(logs: Vec<AccessLog>) -> Self {
        let mut reads = Reads::default();
        logs.iter().for_each(|log| reads.log(log));
        Self { logs, reads }
    }
}

impl Reads {
    fn log(&mut self, log: &AccessLog) {
        let mut operator = |operator: &Operator| match operator {
            Operator::Request(_) => self.request = true,
            Operator::Response(_) => self.response = true,
            Operator::Trailer(_) => self.trailers = true,
            Operator::Plain(PlainOperator::GrpcStatus | PlainOperator::GrpcStatusNumber) => {
                (self.request, self.response, self.trailers) = (true, true, true);
            }
            _ => {}
        };
        match &log.line.format {
            LineFormat::Text(format) => format.operators().for_each(operator),
            LineFormat::Json(format) => format.operators(&mut operator),
        }
        log.filter.iter().for_each(|filter| self.filter(filter));
    }

    fn filter(&mut self, filter: &LogFilter) {
        match filter {
            LogFilter::Header(_) => self.request = true,
            LogFilter::Grpc { .. } => (self.response, self.trailers) = (true, true),
            LogFilter::And(all) | LogFilter::Or(all) => {
                all.iter().for_each(|filter| self.filter(filter));
            }
            LogFilter::Status(_)
            | LogFilter::Duration(_)
            | LogFilter::Flags(_)
            | LogFilter::Runtime(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    struct Known;

    impl Values for Known {
        fn append(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
            match operator.to_string().as_str() {
                "RESPONSE_CODE" => out.extend_from_slice(b"200"),
                "PROTOCOL" => out.extend_from_slice(b"HTTP/2"),
                "DYNAMIC_METADATA(n:text)" | "DYNAMIC_METADATA(n:object)" => {
                    out.extend_from_slice(b"{\"a\":1}");
                }
                "REQ(x)" => out.extend_from_slice(b"a\"\xff\n"),
                _ => return false,
            }
            true
        }

        fn is_text(&self, operator: &Operator) -> bool {
            operator.to_string().contains("text")
        }
    }

    #[test]
    fn a_text_of_metadata_is_one_whatever_it_looks_like() {
        let value = |format: &str| text(format).value(&Known, false);
        assert_eq!(value("%DYNAMIC_METADATA(n:object)%"), json!({ "a": 1 }));
        assert_eq!(value("%DYNAMIC_METADATA(n:text)%"), json!("{\"a\":1}"));
    }

    fn text(text: &str) -> JsonFormat {
        JsonFormat::Text(text.parse().unwrap())
    }

    #[test]
    fn json_keeps_types_and_escapes() {
        let format = || {
            JsonFormat::Object(vec![
                ("both".to_owned(), text("%PROTOCOL% %ROUTE_NAME%")),
                ("code".to_owned(), text("%RESPONSE_CODE%")),
                ("cut".to_owned(), text("%REQ(x):1%")),
                ("list".to_owned(), JsonFormat::List(vec![JsonFormat::Literal(json!(1.5))])),
                ("none".to_owned(), text("%ROUTE_NAME%")),
                ("x".to_owned(), text("%REQ(x)%")),
            ])
        };
        let line = |omit_empty| {
            let mut out = Vec::new();
            Line { format: LineFormat::Json(format()), omit_empty }.append(&Known, &mut out);
            String::from_utf8(out).unwrap()
        };
        let rest = r#""list":[1.5],"#;
        let (cut, x) = (r#""code":200,"cut":"a","#, "\"x\":\"a\\\"\u{fffd}\\n\"}\n");
        assert_eq!(line(false), format!("{{\"both\":\"HTTP/2 -\",{cut}{rest}\"none\":null,{x}"));
        assert_eq!(line(true), format!("{{\"both\":\"HTTP/2 \",{cut}{rest}{x}"));
    }

    #[test]
    fn text_says_where_there_is_nothing() {
        let line = |omit_empty| {
            let format = LineFormat::Text("%ROUTE_NAME%|%RESPONSE_CODE%".parse().unwrap());
            let mut out = Vec::new();
            Line { format, omit_empty }.append(&Known, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!((line(false).as_str(), line(true).as_str()), ("-|200", "|200"));
        assert!(DEFAULT_FORMAT.parse::<Format>().is_ok());
    }

    /// Has this for whatever is asked.
    struct Hostile(&'static [u8]);

    impl Values for Hostile {
        fn append(&self, _: &Operator, out: &mut Vec<u8>) -> bool {
            out.extend_from_slice(self.0);
            true
        }
    }

    #[test]
    fn no_value_ends_a_line_of_a_log() {
        let line = |format: LineFormat, value, logs: bool| {
            let (line, mut out) = (Line { format, omit_empty: false }, Vec::new());
            match logs {
                true => line.append_to_log(&Hostile(value), &mut out),
                false => line.append(&Hostile(value), &mut out),
            }
            out
        };
        let format =
            || LineFormat::Text("a %DYNAMIC_METADATA(n:k)%\nb %REQ(x):2%\n".parse().unwrap());
        let value = b"1\r\n@2\0\x1b[2J\x7f";
        let expected = b"a 1\\r\\n@2\\x00\\x1b[2J\\x7f\nb 1\\\n";
        assert_eq!(line(format(), value, true), expected, "only the format's own line feeds");
        // As Envoy: neither ends a line.
        assert_eq!(line(format(), b"\t\\n\xe9\"", true), b"a \t\\n\xe9\"\nb \t\\\n");
        // A local reply's body has as many lines as it likes.
        assert_eq!(line(format(), b"1\n2", false), b"a 1\n2\nb 1\n\n");
        let json = LineFormat::Json(JsonFormat::List(vec![text("%REQ(x)%")]));
        assert_eq!(line(json, b"1\n2", true), b"[\"1\\n2\"]\n");
    }
}

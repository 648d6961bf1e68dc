//! A record as a line. What a peer chose never breaks out of its field.

use std::{
    fmt::{self, Display, Write as _},
    io::Write as _,
    time::{Duration, SystemTime},
};

use serde::{Serialize, Serializer, ser::SerializeMap};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::AccessRecord;
use crate::observe::ConnectionSecurity;

/// One field's value.
enum Value<'a> {
    Absent,
    /// May hold anything.
    Text(&'a str),
    /// Addresses, identities and our own words.
    Shown(&'a dyn Display),
    Count(u64),
    /// Shown with microseconds.
    Milliseconds(Duration),
}

impl<'a, T: AsRef<str>> From<&'a Option<T>> for Value<'a> {
    fn from(text: &'a Option<T>) -> Self {
        text.as_ref().map_or(Self::Absent, |text| Self::Text(text.as_ref()))
    }
}

fn shown<T: Display>(value: &Option<T>) -> Value<'_> {
    value.as_ref().map_or(Value::Absent, |value| Value::Shown(value))
}

/// The fields in the order they are written; both formats use it.
fn each_field<E>(
    record: &AccessRecord,
    mut field: impl FnMut(&'static str, Value<'_>) -> Result<(), E>,
) -> Result<(), E> {
    field("start_time", Value::Shown(&StartTime(record.start_time)))?;
    field("direction", Value::Text(record.direction.as_str()))?;
    field("protocol", Value::Shown(&record.protocol))?;
    field("source_address", Value::Shown(&record.source))?;
    field("source_workload", (&record.source_workload).into())?;
    field("source_identity", shown(&record.source_identity))?;
    field("original_destination", Value::Shown(&record.original_destination))?;
    field("destination_workload", (&record.destination_workload).into())?;
    field("destination_identity", shown(&record.destination_identity))?;
    field("upstream_host", shown(&record.upstream_host))?;
    field("upstream_cluster", (&record.upstream_cluster).into())?;
    field("listener", (&record.listener).into())?;
    field("filter_chain", (&record.filter_chain).into())?;
    field("route_name", (&record.route_name).into())?;
    if let Some(http) = &record.http {
        field("method", Value::Text(http.method.as_str()))?;
        field("authority", Value::Text(&http.authority))?;
        field("path", Value::Text(&http.path))?;
        field("response_code", Value::Count(http.response_code.into()))?;
        field("request_id", (&http.request_id).into())?;
    }
    field("response_flags", Value::Shown(&record.response_flags))?;
    field("policy", (&record.policy).into())?;
    field("denied_reason", (&record.denied_reason).into())?;
    let security = match record.connection_security_policy {
        ConnectionSecurity::MutualTls => "mutual_tls",
        ConnectionSecurity::None => "none",
    };
    field("connection_security_policy", Value::Text(security))?;
    field("bytes_received", Value::Count(record.bytes_received))?;
    field("bytes_sent", Value::Count(record.bytes_sent))?;
    if let Some(kernel) = &record.kernel_path {
        field("path", Value::Text("kernel"))?;
        field("round_trip_ms", Value::Milliseconds(kernel.round_trip))?;
        field("retransmits", Value::Count(kernel.retransmits.into()))?;
    }
    field("duration_ms", Value::Milliseconds(record.duration))
}

/// RFC 3339 in UTC, to the microsecond.
struct StartTime(SystemTime);

impl Display for StartTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from(self.0);
        let at = at.replace_nanosecond(at.microsecond() * 1_000).unwrap_or(at);
        f.write_str(&at.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}

struct Json<'a>(&'a AccessRecord);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        each_field(self.0, |name, value| match value {
            Value::Absent => map.serialize_entry(name, &None::<()>),
            Value::Text(text) => map.serialize_entry(name, text),
            Value::Shown(value) => map.serialize_entry(name, &format_args!("{value}")),
            Value::Count(count) => map.serialize_entry(name, &count),
            Value::Milliseconds(duration) => map.serialize_entry(name, &milliseconds(duration)),
        })?;
        map.end()
    }
}

/// Appends the record as one JSON object and a line feed.
pub(super) fn json(record: &AccessRecord, out: &mut Vec<u8>) {
    let start = out.len();
    if serde_json::to_writer(&mut *out, &Json(record)).is_err() {
        // Only a start time outside the calendar can't be written.
        out.truncate(start);
        out.extend_from_slice(br#"{"error":"record has no valid start time"}"#);
    }
    out.push(b'\n');
}

/// Appends the record as `key=value` pairs and a line feed; absent values are `-`,
/// strings that hold anything but plain characters are quoted and escaped.
pub(super) fn text(record: &AccessRecord, out: &mut Vec<u8>) {
    let start = out.len();
    let mut value_text = String::new();
    let written = each_field(record, |name, value| {
        if out.len() > start {
            out.push(b' ');
        }
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        match value {
            Value::Absent => out.push(b'-'),
            Value::Text(text) => quoted(text, out),
            Value::Shown(value) => {
                value_text.clear();
                write!(value_text, "{value}")?;
                quoted(&value_text, out);
            }
            // Writing to a Vec does not fail.
            Value::Count(count) => _ = write!(out, "{count}"),
            Value::Milliseconds(duration) => _ = write!(out, "{:.3}", milliseconds(duration)),
        }
        Ok::<(), fmt::Error>(())
    });
    if written.is_err() {
        out.truncate(start);
        out.extend_from_slice(b"error=\"record has no valid start time\"");
    }
    out.push(b'\n');
}

/// A bare `-` means absent, so a value that is one gets quotes too.
fn quoted(value: &str, out: &mut Vec<u8>) {
    let plain = |c: char| c.is_ascii_graphic() && !"\"\\=".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        out.extend_from_slice(value.as_bytes());
        return;
    }
    out.push(b'"');
    for c in value.chars() {
        match c {
            '\'' => out.push(b'\''),
            // Leaves printable ASCII and escapes the rest: neither a line feed nor a
            // terminal's escape sequence survives.
            c => out.extend(c.escape_default().map(|c| c as u8)),
        }
    }
    out.push(b'"');
}

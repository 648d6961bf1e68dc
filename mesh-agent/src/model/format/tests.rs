use std::time::{Duration, SystemTime};

use super::*;

/// Values by what the operator looks like; what begins with `-` is not there.
struct Shown;

impl Values for Shown {
    fn append(&self, operator: &Operator, out: &mut Vec<u8>) -> bool {
        let text = operator.to_string();
        out.extend_from_slice(text.as_bytes());
        !text.contains("none")
    }
}

#[track_caller]
fn filled(format: &str) -> String {
    let format: Format = format.parse().unwrap();
    let mut out = Vec::new();
    format.append(&Shown, "-", &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn places_are_filled_in() {
    for (format, expected) in [
        ("", ""),
        ("plain", "plain"),
        ("100%%", "100%"),
        ("%%PROTOCOL%%", "%PROTOCOL%"),
        ("<%PROTOCOL%>", "<PROTOCOL>"),
        ("%REQ(X-A)%%RESP(b?C)%", "REQ(x-a)RESP(b?c)"),
        ("%REQ(:PATH):7%|", "REQ(:pa|"),
        ("%REQ(none)%", "-"),
        ("%REQ(none):0%", ""),
        ("%TRAILER(grpc-status)%", "TRAILER(grpc-status)"),
        ("%DYNAMIC_METADATA(a.b:c:d):3%", "DYN"),
        ("%DYNAMIC_METADATA(a.b)%", "DYNAMIC_METADATA(a.b)"),
        ("%START_TIME%", "START_TIME"),
        ("%START_TIME(%Y %s.%3f)%", "START_TIME(%Y %s.%3f)"),
        ("%DOWNSTREAM_PEER_CERT_V_START%", "DOWNSTREAM_PEER_CERT_V_START"),
        ("%DOWNSTREAM_PEER_CERT_V_END(%s)%", "DOWNSTREAM_PEER_CERT_V_END(%s)"),
        ("%DOWNSTREAM_PEER_CERT%", "DOWNSTREAM_PEER_CERT"),
    ] {
        assert_eq!(filled(format), expected, "{format}");
        let parsed: Format = format.parse().unwrap();
        assert_eq!(parsed.to_string().parse::<Format>().unwrap(), parsed, "{format}");
    }
}

#[test]
fn what_is_no_format_is_refused() {
    for (format, expected) in [
        ("%", "a `%` at byte 0 begins no operator; write `%%` for the sign itself"),
        ("ab%PROTOCOL", "a `%` at byte 2 begins no operator; write `%%` for the sign itself"),
        ("%protocol%", "a `%` at byte 0 begins no operator; write `%%` for the sign itself"),
        ("%REQ(a%", "a `%` at byte 0 begins no operator; write `%%` for the sign itself"),
        ("%NONSENSE%", "%NONSENSE% is not supported"),
        ("%UPSTREAM_TLS_CIPHER%", "%UPSTREAM_TLS_CIPHER% is not supported"),
        ("%REQ%", "%REQ% is not supported"),
        ("%PROTOCOL:3%", "%PROTOCOL% takes neither argument nor length"),
        ("%PROTOCOL(a)%", "%PROTOCOL% takes neither argument nor length"),
        ("%REQ(a):x%", "`x` is no length"),
        ("%REQ()%", "`` names no header, or more than two"),
        ("%REQ(a?b?c)%", "`a?b?c` names no header, or more than two"),
        ("%REQ(a b)%", "`a b` names no header, or more than two"),
        ("%START_TIME:3%", "%START_TIME% takes no length"),
        ("%DOWNSTREAM_PEER_CERT_V_END:3%", "%DOWNSTREAM_PEER_CERT_V_END% takes no length"),
        ("%DOWNSTREAM_PEER_CERT_V_END(%Q)%", "`%Q` is not supported as a format of time"),
        ("%START_TIME(%Q)%", "`%Q` is not supported as a format of time"),
        ("%DYNAMIC_METADATA(:a)%", "`:a` names no metadata: NAMESPACE or NAMESPACE:KEY:..."),
    ] {
        assert_eq!(format.parse::<Format>().unwrap_err().to_string(), expected, "{format}");
    }
    let long = "x".repeat(FORMAT_MAX_BYTES + 1);
    assert_eq!(long.parse::<Format>().unwrap_err(), FormatError::TooLong(long.len()));
}

#[test]
fn a_time_is_written_as_envoy_does() {
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_784_930_264_019);
    for (format, expected) in [
        ("", "2026-11-27T13:08:50.264Z"),
        ("%Y/%m/%dT%H:%M:%S%z", "2026/11/27T13:08:50+0000"),
        ("%s.%3f", "1795784930.264"),
        ("%F %T %Z %a %b %6f %%", "2026-11-27 13:08:50 UTC Fri Nov 264019 %"),
    ] {
        let mut out = Vec::new();
        format.parse::<TimeFormat>().unwrap().append(at, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected, "{format}");
    }
}

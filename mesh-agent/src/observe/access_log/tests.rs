use std::{
    fs,
    sync::{Mutex, mpsc},
    time::UNIX_EPOCH,
};

use super::*;
use crate::observe::flags::ResponseFlag;

fn record() -> AccessRecord {
    AccessRecord {
        start_time: UNIX_EPOCH + Duration::from_micros(1_767_323_045_123_456),
        duration: Duration::from_micros(1_500),
        ..AccessRecord::new(
            Direction::Inbound,
            "10.0.0.1:40000".parse().unwrap(),
            "[fd00::2]:8080".parse().unwrap(),
        )
    }
}

fn hostile(path: &str) -> AccessRecord {
    let mut record = record();
    record.http = Some(
        HttpRecord::new(http::Method::GET, "shop\" policy=\"allow", path)
            .with_request_id(Some("a\r\nb")),
    );
    record
}

fn json_line(record: &AccessRecord) -> String {
    let mut line = Vec::new();
    format::json(record, &mut line);
    String::from_utf8(line).unwrap()
}

fn text_line(record: &AccessRecord) -> String {
    let mut line = Vec::new();
    format::text(record, &mut line);
    String::from_utf8(line).unwrap()
}

#[test]
fn a_tcp_connection_as_json() {
    let mut record = record();
    record.source_identity = Some("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap());
    record.policy = Some("allow-web".into());
    record.response_flags = ResponseFlag::UpstreamConnectionFailure.into();
    record.connection_security_policy = ConnectionSecurity::MutualTls;
    record.bytes_received = 3;
    assert_eq!(
        json_line(&record),
        concat!(
            r#"{"start_time":"2026-01-02T03:04:05.123456Z","direction":"inbound","#,
            r#""protocol":"TCP","source_address":"10.0.0.1:40000","source_workload":null,"#,
            r#""source_identity":"spiffe://cluster.local/ns/shop/sa/web","#,
            r#""original_destination":"[fd00::2]:8080","destination_workload":null,"#,
            r#""destination_identity":null,"upstream_host":null,"upstream_cluster":null,"#,
            r#""listener":null,"filter_chain":null,"route_name":null,"response_flags":"UF","#,
            r#""policy":"allow-web","denied_reason":null,"#,
            r#""connection_security_policy":"mutual_tls","bytes_received":3,"bytes_sent":0,"#,
            r#""duration_ms":1.5}"#,
            "\n"
        )
    );
}

#[test]
fn a_request_as_text() {
    let mut record = record();
    let mut request = HttpRecord::new(http::Method::POST, "shop", "/buy?x=1");
    request.response_code = 403;
    record.http = Some(request);
    record.protocol = Protocol::Http2;
    record.denied_reason = Some("no policy of `web` matches".to_owned());
    assert_eq!(
        text_line(&record),
        "start_time=2026-01-02T03:04:05.123456Z direction=inbound protocol=HTTP/2 \
         source_address=10.0.0.1:40000 source_workload=- source_identity=- \
         original_destination=[fd00::2]:8080 destination_workload=- destination_identity=- \
         upstream_host=- upstream_cluster=- listener=- filter_chain=- route_name=- \
         method=POST authority=shop path=\"/buy?x=1\" response_code=403 request_id=- \
         response_flags=- policy=- denied_reason=\"no policy of `web` matches\" \
         connection_security_policy=none bytes_received=0 bytes_sent=0 duration_ms=1.500\n"
    );
}

#[test]
fn what_a_peer_chose_stays_in_its_field() {
    for path in [
        "/\n{\"forged\":true}",
        "/\r\nstart_time=now",
        "/\" policy=\"x",
        "/\\",
        "/\u{1b}[2J",
        "/\u{9b}2J",
        "/\0",
        "/\u{2028}",
        "/ä☃",
        "",
    ] {
        let record = hostile(path);
        let json = json_line(&record);
        assert_eq!(json.matches('\n').count(), 1, "{json:?}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["path"], path);
        assert_eq!(value["policy"], serde_json::Value::Null);

        let text = text_line(&record);
        let body = text.strip_suffix('\n').unwrap();
        assert!(body.bytes().all(|b| b == b' ' || b.is_ascii_graphic()), "{text:?}");
        // With every quoted value taken out, what is left is exactly our own keys.
        let mut bare = String::new();
        let (mut quoted, mut escaped) = (false, false);
        for c in body.chars() {
            match (quoted, escaped, c) {
                (true, true, _) => escaped = false,
                (true, false, '\\') => escaped = true,
                (_, false, '"') => quoted = !quoted,
                (true, false, _) => {}
                (false, _, c) => bare.push(c),
            }
        }
        assert!(!quoted, "{text:?}");
        assert_eq!(bare.matches("policy=").count(), 2, "{bare}");
        assert_eq!(bare.matches("start_time=").count(), 1, "{bare}");
    }
}

#[test]
fn long_text_is_cut_at_a_character() {
    let http = HttpRecord::new(http::Method::GET, "a", &"ä".repeat(5_000));
    assert!(http.path.len() <= MAX_TEXT_BYTES + '…'.len_utf8());
    assert!(http.path.ends_with("ä…"));
    assert_eq!(bounded("short"), "short");
}

#[test]
fn lines_reach_the_file_before_close_returns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    fs::write(&path, "before\n").unwrap();
    let sink = AccessLogSink::File(path.clone());
    let dropped = Counter::default();
    let (log, writer) = AccessLog::start(AccessLogFormat::Json, &sink, dropped.clone()).unwrap();
    assert!(log.is_on());
    for _ in 0..100 {
        log.log(record());
    }
    assert!(writer.close(Duration::from_secs(10)));
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 101);
    log.log(record());
    assert_eq!(dropped.get(), 1, "a line after the end is lost, and counted");
}

#[test]
fn a_file_that_can_not_be_opened_is_named() {
    let sink = AccessLogSink::File("/none/access.log".into());
    let error = AccessLog::start(AccessLogFormat::Json, &sink, Counter::default()).unwrap_err();
    assert!(error.to_string().contains("/none/access.log"), "{error}");
}

/// Blocks in its first write until told to go on.
struct Stuck {
    go: Mutex<mpsc::Receiver<()>>,
}

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        _ = self.go.lock().unwrap().recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_sink_that_hangs_costs_lines_and_never_the_caller() {
    let (go, stuck) = mpsc::channel();
    let out = Box::new(Stuck { go: Mutex::new(stuck) });
    let dropped = Counter::default();
    let (log, writer) =
        AccessLog::start_on(AccessLogFormat::Json, out, dropped.clone(), 4).unwrap();
    for _ in 0..1_000 {
        log.log(record());
    }
    assert!(dropped.get() > 0, "the queue is not bounded");
    assert!(!writer.close(Duration::from_millis(20)), "close waited for a sink that hangs");
    drop(go);
}

/// A disk that is full.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }
}

#[test]
fn lines_that_can_not_be_written_are_counted() {
    let dropped = Counter::default();
    let (log, writer) =
        AccessLog::start_on(AccessLogFormat::Text, Box::new(Full), dropped.clone(), 64).unwrap();
    for _ in 0..5 {
        log.log(record());
    }
    assert!(writer.close(Duration::from_secs(10)));
    assert!(dropped.get() >= 5, "{} counted", dropped.get());
}

#[test]
fn off_writes_nothing() {
    let sink = AccessLogSink::File("/none/access.log".into());
    let (log, writer) = AccessLog::start(AccessLogFormat::Off, &sink, Counter::default()).unwrap();
    assert!(!log.is_on());
    log.log(record());
    assert!(writer.close(Duration::ZERO));
}

//! Lines of configured access logs.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::harness::{Mesh, Setup, mirror_upstream};
use crate::{
    model::access_log::{
        AccessLog, Comparison, ComparisonOp, Line, LineFormat, LogFilter, LogSink,
    },
    observe::access_log::Lines,
};

#[tokio::test]
async fn each_request_has_a_line_where_its_filter_wants_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| LogSink::File(directory.path().join(name).to_str().unwrap().into());
    let log = |name: &str, filter| {
        let text = "%REQ(:METHOD)% %REQ(:PATH)% %REQ(HOST)% %REQ(X-A)% %RESPONSE_CODE% \
                    %RESPONSE_FLAGS% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %LOCAL_REPLY_BODY%\n";
        let format = LineFormat::Text(text.parse().unwrap());
        AccessLog { sink: file(name), line: Line { format, omit_empty: false }, filter }
    };
    let failed = LogFilter::Status(Comparison {
        op: ComparisonOp::AtLeast,
        value: 500,
        runtime_key: String::new(),
    });
    let (lines, writer) = Lines::start(Counter::default()).unwrap();
    let access_logs = vec![log("all", None), log("failed", Some(failed))];
    let mut mesh = Mesh::new(Setup { access_logs, ..Setup::new(mirror_upstream().await) });
    mesh.services.lines = lines;
    let mut client = mesh.connect().await;
    client.ask("GET /api/x HTTP/1.1\r\nhost: app.test\r\nx-a: 1\r\n\r\n").await;
    client.ask("GET /dead HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    client.ask("GET /direct HTTP/1.1\r\nhost: app.test\r\n\r\n").await;
    // Refused unread: nothing is known of it.
    client.write("GET / HTTP/1.1\r\nhost: app.test\r\nno colon\r\n\r\n").await;
    client.rest().await;
    mesh.record(3).await;
    let closed = tokio::task::spawn_blocking(move || writer.close(Duration::from_secs(30)));
    assert!(closed.await.unwrap());
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let dead = "GET /dead app.test - 503 UF 1 \n";
    let all = format!(
        "GET /v1/x internal.test 1 200 - 1 \n{dead}GET /direct app.test - 418 - 0 \n- - - - 400 DPE 0 \n"
    );
    assert_eq!((read("all"), read("failed")), (all, dead.to_owned()));
}

use super::*;
use crate::model::authz::{StringMatcher, StringPattern};

fn probe() -> HttpProbe {
    HttpProbe {
        host: None,
        path: "/".into(),
        method: http::Method::GET,
        http2: false,
        send: Bytes::new(),
        receive: Vec::new(),
        response_buffer_bytes: 1024,
        headers: HeaderMutation::default(),
        expected: std::iter::once(200..201).collect(),
        retriable: Vec::new(),
        service_name: None,
    }
}

fn judged(probe: &HttpProbe, status: u16, header: Option<(&'static str, &'static str)>) -> String {
    let mut headers = HeaderMap::new();
    if let Some((name, value)) = header {
        headers.insert(name, HeaderValue::from_static(value));
    }
    match judge(probe, status, &headers, b"all is well") {
        Ok(degraded) => format!("passed {degraded}"),
        Err(Ill { at_once, excluded, .. }) => format!("failed {at_once} {excluded}"),
    }
}

#[test]
fn an_answer_is_judged_by_status_body_and_headers() {
    let plain = probe();
    assert_eq!(judged(&plain, 200, None), "passed false");
    assert_eq!(judged(&plain, 200, Some((DEGRADED, "true"))), "passed true");
    assert_eq!(judged(&plain, 204, None), "failed true false");
    assert_eq!(judged(&plain, 503, Some((IMMEDIATE_FAIL, "true"))), "failed true true");
    // One that is well means it only where it fails.
    assert_eq!(judged(&plain, 200, Some((IMMEDIATE_FAIL, "true"))), "passed false");

    let ranges = HttpProbe {
        expected: vec![200..300, 404..405],
        retriable: vec![404..405, 500..600],
        ..probe()
    };
    for (status, expected) in [
        (299, "passed false"),
        (404, "passed false"),
        (300, "failed true false"),
        (500, "failed false false"),
        (599, "failed false false"),
    ] {
        assert_eq!(judged(&ranges, status, None), expected, "{status}");
    }

    let body = |block: &'static str| HttpProbe {
        receive: vec![Bytes::from_static(block.as_bytes())],
        ..probe()
    };
    assert_eq!(judged(&body("well"), 200, None), "passed false");
    assert_eq!(judged(&body("ill"), 200, None), "failed true false");
    assert_eq!(judged(&body("well"), 500, None), "failed true false");

    let pattern = StringPattern::Prefix("shop".to_owned());
    let named =
        HttpProbe { service_name: Some(StringMatcher { pattern, ignore_case: false }), ..probe() };
    assert_eq!(judged(&named, 200, Some((CHECKED_CLUSTER, "shop-1"))), "passed false");
    assert_eq!(judged(&named, 200, Some((CHECKED_CLUSTER, "bank"))), "failed true false");
    assert_eq!(judged(&named, 200, None), "failed true false");
}

//! The types beside the four, in conversation.

use std::collections::BTreeSet;

use super::{
    messages::{ECDS, RTDS, SDS, VHDS, extension, layer, secret, trusted_ca},
    *,
};

impl Bench {
    fn asks_for(&mut self, names: &[(ResourceType, &str)]) {
        let keys: BTreeSet<Key> =
            names.iter().map(|(kind, name)| (*kind, (*name).into())).collect();
        self.session.want(&keys, self.now);
        self.apply();
    }

    fn delta_with_nothing() -> Self {
        let mut bench = Self::new(Variant::Delta);
        bench.tells(CDS, "c1", &[], &[]);
        bench.tells(LDS, "l1", &[], &[]);
        while bench.session.poll_request(0, bench.now).is_some() {}
        assert_eq!(bench.updates, 1);
        bench
    }
}

#[test]
fn what_is_asked_for_from_outside_comes_and_goes() {
    let mut bench = Bench::delta_with_nothing();
    bench.asks_for(&[(ResourceType::Secret, "s"), (ResourceType::Runtime, "r")]);
    let [runtime, secrets] = [bench.subscribes(), bench.subscribes()];
    assert_eq!((runtime.type_url.as_str(), secrets.type_url.as_str()), (RTDS, SDS));
    assert_eq!(secrets.resource_names_subscribe, ["s"]);
    let unasked = secret("unasked");
    bench.tells(SDS, "s1", &[("s", secret("s")), ("unasked", unasked)], &[]);
    bench.tells(RTDS, "r1", &[("r", layer("r", "key", 7.0))], &[]);
    bench.expect_in_force(&["rtds/r", "sds/s"]);
    bench.asks_for(&[(ResourceType::Runtime, "r")]);
    bench.expect_in_force(&["rtds/r"]);
    let _acks = (bench.subscribes(), bench.subscribes());
    bench.expect_silence();
}

#[test]
fn a_private_key_is_sent_on_but_not_to_be_stored() {
    let mut bench = Bench::delta_with_nothing();
    bench.asks_for(&[(ResourceType::Secret, "s"), (ResourceType::Secret, "ca")]);
    bench.session.on_delta(
        0,
        Bench::told(SDS, "s1", &[("s", secret("s")), ("ca", trusted_ca("ca"))], &[]),
        bench.now,
    );
    let Some(Update::Changes(delta)) = bench.session.poll_update(bench.now) else { panic!() };
    assert_eq!(delta.changes.updated.secrets.len(), 2);
    let stored: Vec<_> = delta.raw.resources.iter().filter(|(_, raw)| raw.is_some()).collect();
    assert_eq!(stored.len(), 1);
    assert_eq!(&*stored[0].0.1, "ca");
    let shown = format!("{:?}", delta.changes.updated.secrets);
    assert!(shown.contains("[redacted]"), "{shown}");
}

#[test]
fn a_secret_that_the_server_forgets_stays_and_other_types_go() {
    let mut bench = Bench::delta_with_nothing();
    bench.asks_for(&[
        (ResourceType::Secret, "s"),
        (ResourceType::Runtime, "r"),
        (ResourceType::ExtensionConfig, "e"),
    ]);
    bench.tells(SDS, "s1", &[("s", secret("s"))], &[]);
    bench.tells(RTDS, "r1", &[("r", layer("r", "key", 7.0))], &[]);
    bench.tells(ECDS, "e1", &[("e", extension("e"))], &[]);
    bench.expect_in_force(&["ecds/e", "rtds/r", "sds/s"]);
    bench.tells(SDS, "s2", &[], &["s"]);
    bench.tells(RTDS, "r2", &[], &["r"]);
    bench.tells(ECDS, "e2", &[], &["e"]);
    bench.expect_in_force(&["sds/s"]);
}

#[test]
fn a_bad_secret_is_refused_without_saying_it_and_the_last_good_one_stays() {
    let mut bench = Bench::delta_with_nothing();
    bench.asks_for(&[(ResourceType::Secret, "s")]);
    bench.tells(SDS, "s1", &[("s", secret("s"))], &[]);
    let first = bench.cell.load();
    bench.tells(SDS, "s2", &[("s", messages::bad_secret("s"))], &[]);
    while let Some(Request::Delta(request)) = bench.session.poll_request(0, bench.now) {
        if let Some(error) = request.error_detail {
            assert_eq!(error.message, "secrets[s].tls_certificate: the private key can't be used");
        }
    }
    let [reason] = bench.refused.as_slice() else { panic!("{:?}", bench.refused) };
    assert!(!reason.contains("c2VjcmV0"), "{reason}");
    assert!(Arc::ptr_eq(&first.secrets["s"], &bench.cell.load().secrets["s"]));
}

#[test]
fn a_type_that_no_stream_carries_keeps_nobody_waiting() {
    let node = Node { id: "n".to_owned(), ..Node::default() };
    let two = Carries { variant: Variant::Delta, types: vec![ResourceType::Cluster] };
    let one = Carries { variant: Variant::Sotw, types: vec![ResourceType::Listener] };
    let mut bench = Bench::over(Session::new([two, one], node, Duration::from_secs(15)));
    bench.session.connected(1, bench.now);
    bench.tells(CDS, "c1", &[("a", cluster("a"))], &[]);
    bench.expect_in_force(&[]);
    bench.session.on_sotw(
        1,
        sotw::response(LDS, "1", "l1", vec![tcp_listener("l", 80, "a")]),
        bench.now,
    );
    bench.expect_in_force(&["cds/a", "eds/a:0", "lds/l"]);
    // Each stream says who we are, and only what it carries.
    let Some(Request::Delta(first)) = bench.session.poll_request(0, bench.now) else { panic!() };
    let Some(Request::Sotw(second)) = bench.session.poll_request(1, bench.now) else { panic!() };
    assert!(first.node.is_some() && second.node.is_some());
    assert_eq!((first.type_url.as_str(), second.type_url.as_str()), (CDS, LDS));
    bench.session.on_sotw(1, sotw::response(CDS, "1", "x", vec![cluster("b")]), bench.now);
    bench.expect_in_force(&["cds/a", "eds/a:0", "lds/l"]);
}

#[test]
fn virtual_hosts_have_no_state_of_the_world() {
    let mut bench = Bench::new(Variant::Sotw);
    bench.asks_for(&[(ResourceType::VirtualHost, "r")]);
    while let Some(Request::Sotw(request)) = bench.session.poll_request(0, bench.now) {
        assert_ne!(request.type_url, VHDS);
    }
    assert!(bench.session.status().iter().all(|of| of.kind != "virtual_hosts"));
}

#[test]
fn a_hundred_thousand_values_that_are_none_are_refused_briefly() {
    use envoy_types::pb::{
        envoy::service::runtime::v3::Runtime,
        google::protobuf::{ListValue, Struct, Value, value::Kind},
    };
    use prost::Message as _;
    let odd = |i: u32| match i % 6 {
        0 => Some(Kind::NumberValue(f64::NAN)),
        1 => Some(Kind::NumberValue(f64::NEG_INFINITY)),
        2 => Some(Kind::ListValue(ListValue::default())),
        3 => Some(Kind::NullValue(i32::MAX)),
        4 => Some(Kind::StructValue(Struct {
            fields: [("numerator".to_owned(), Value { kind: Some(Kind::NumberValue(-1.0)) })]
                .into(),
        })),
        _ => None,
    };
    let of = |value: &dyn Fn(u32) -> Option<Kind>| {
        let fields = (0..100_000).map(|i| (format!("{i}\u{202e}\n"), Value { kind: value(i) }));
        let layer = Some(Struct { fields: fields.collect() });
        let value = Runtime { name: "r".to_owned(), layer }.encode_to_vec();
        Any { type_url: RTDS.to_owned(), value }
    };
    let mut bench = Bench::delta_with_nothing();
    bench.asks_for(&[(ResourceType::Runtime, "r")]);
    while bench.session.poll_request(0, bench.now).is_some() {}
    let begin = Instant::now();
    bench.tells(RTDS, "n1", &[("r", of(&odd))], &[]);
    let nack = bench.subscribes();
    let told = nack.error_detail.unwrap().message;
    assert!(told.len() <= 4096 && !told.contains(char::is_control), "{}", told.len());
    assert!(bench.refused.len() <= 102, "{}", bench.refused.len());
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    // As many good ones are taken.
    bench.tells(RTDS, "n2", &[("r", of(&|i| Some(Kind::NumberValue(f64::from(i) * -1e300))))], &[]);
    assert_eq!(bench.subscribes().error_detail, None);
    println!("200 000 values in {:?}", begin.elapsed());
    assert_eq!(bench.cell.load().runtime_layers.keys().count(), 1);
}

#[test]
fn names_of_a_megabyte_and_names_that_are_no_text_are_refused_briefly() {
    let long = "n".repeat(1 << 20);
    let mut bench = Bench::new(Variant::Sotw);
    let none = Any { type_url: CDS.to_owned(), value: vec![0x0a, 2, 0xff, 0xfe] };
    let bad = messages::bad_cluster(&long);
    let all = vec![bad.clone(), none, bad, Any::default(), cluster("good"), cluster("good")];
    bench.says(CDS, "1", "c1", all);
    let Some(Request::Sotw(nack)) = bench.session.poll_request(0, bench.now) else { panic!() };
    let told = nack.error_detail.unwrap().message;
    assert!(told.len() <= 4096, "{}", told.len());
    assert!(bench.refused.iter().all(|reason| reason.len() < 8192), "{:?}", bench.refused);
    assert_eq!(bench.refused.len(), 5, "{:?}", bench.refused);
    assert!(bench.session.table(ResourceType::Cluster).accepted.contains_key("good"));
    let shown: usize = bench
        .session
        .status()
        .iter()
        .filter_map(|t| t.last_nack.as_ref())
        .flat_map(|(_, reasons)| reasons)
        .map(String::len)
        .sum();
    assert!(shown < 64 << 10, "{shown}");
}

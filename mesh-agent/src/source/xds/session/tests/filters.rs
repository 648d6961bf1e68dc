//! Filters that are configured by themselves, in conversation.

use envoy_types::pb::envoy::config::core::v3::ExtensionConfigSource;

use super::{
    messages::{ECDS, bad_extension, extension, filtered_listener, with_default},
    *,
};

impl Bench {
    /// A server that has told of a listener, and of all that it needs but its filter's
    /// configuration.
    fn with_filter(source: ExtensionConfigSource) -> Self {
        let mut bench = Self::new(Variant::Delta);
        bench.tells(CDS, "c1", &[("a", cluster("a"))], &[]);
        bench.tells(EDS, "e1", &[("a", endpoints("a", 1))], &[]);
        bench.tells(LDS, "l1", &[("l", filtered_listener(80, "f", source))], &[]);
        bench.tells(RDS, "r1", &[("r", routes("r", "a"))], &[]);
        bench
    }

    fn wants_filters(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(request) = self.session.poll_request(0, self.now) {
            if let Request::Delta(request) = request
                && request.type_url == ECDS
            {
                names.extend(request.resource_names_subscribe);
            }
        }
        names
    }
}

const REST: [&str; 4] = ["cds/a", "eds/a:1", "lds/l", "rds/r"];
const ALL: [&str; 5] = ["cds/a", "ecds/f", "eds/a:1", "lds/l", "rds/r"];

#[test]
fn a_listener_waits_for_its_filters_configuration() {
    let mut bench = Bench::with_filter(ExtensionConfigSource::default());
    assert_eq!(bench.wants_filters(), ["f"]);
    bench.expect_in_force(&[]);
    assert_eq!(bench.warming(), ["listeners[l] waits for extension_configs[f]"]);
    bench.tells(ECDS, "x1", &[("f", extension("f")), ("g", extension("g"))], &[]);
    bench.expect_in_force(&ALL);
    // Another version of it touches nothing else.
    bench.tells(LDS, "l2", &[], &["l"]);
    bench.expect_in_force(&["cds/a", "eds/a:1"]);
}

#[test]
fn a_filters_configuration_that_is_not_to_be_had_keeps_no_listener_waiting() {
    // The server says so.
    let mut bench = Bench::with_filter(ExtensionConfigSource::default());
    bench.tells(ECDS, "x1", &[], &["f"]);
    bench.expect_in_force(&REST);
    bench.tells(ECDS, "x2", &[("f", extension("f"))], &[]);
    bench.expect_in_force(&ALL);
    bench.tells(ECDS, "x3", &[], &["f"]);
    bench.expect_in_force(&REST);
    // It says nothing.
    let mut bench = Bench::with_filter(with_default());
    bench.after(Duration::from_secs(14));
    bench.expect_in_force(&[]);
    bench.after(Duration::from_secs(2));
    bench.expect_in_force(&REST);
    // What it says is refused.
    let mut bench = Bench::with_filter(ExtensionConfigSource::default());
    bench.tells(ECDS, "x1", &[("f", bad_extension("f"))], &[]);
    bench.expect_in_force(&REST);
    assert_eq!(bench.refused, ["extension_configs[f].track_per_rule_stats: is not supported"]);
}

#[test]
fn a_default_configuration_may_be_had_at_once() {
    let at_once =
        ExtensionConfigSource { apply_default_config_without_warming: true, ..with_default() };
    let mut bench = Bench::with_filter(at_once);
    assert_eq!(bench.wants_filters(), ["f"]);
    bench.expect_in_force(&REST);
    bench.tells(ECDS, "x1", &[("f", extension("f"))], &[]);
    bench.expect_in_force(&ALL);
    // It is not taken away from a listener that does not wait for it either.
    bench.tells(RDS, "r2", &[("r", routes("r", "a"))], &[]);
    bench.expect_in_force(&ALL);
}

#[test]
fn a_bad_configuration_neither_replaces_a_good_one_nor_a_listener_that_serves() {
    let mut bench = Bench::with_filter(ExtensionConfigSource::default());
    bench.tells(ECDS, "x1", &[("f", extension("f"))], &[]);
    bench.expect_in_force(&ALL);
    let good = bench.cell.load();
    bench.tells(ECDS, "x2", &[("f", bad_extension("f"))], &[]);
    assert!(Arc::ptr_eq(&good.extension_configs["f"], &bench.cell.load().extension_configs["f"]));
    // The listener is to take another one, which is bad: it stays as it is.
    let changed = filtered_listener(80, "g", ExtensionConfigSource::default());
    bench.tells(LDS, "l2", &[("l", changed)], &[]);
    bench.tells(ECDS, "x3", &[("g", bad_extension("g"))], &[]);
    bench.after(Duration::from_secs(60));
    assert_eq!(bench.warming(), ["listeners[l] waits for extension_configs[g]"]);
    bench.expect_in_force(&ALL);
    bench.tells(ECDS, "x4", &[("g", extension("g"))], &[]);
    bench.expect_in_force(&["cds/a", "ecds/g", "eds/a:1", "lds/l", "rds/r"]);
}

#[test]
fn a_configuration_of_a_type_that_a_place_does_not_take_is_refused_by_its_name() {
    let mut bench = Bench::with_filter(ExtensionConfigSource::default());
    bench.tells(ECDS, "x1", &[("f", extension("f"))], &[]);
    let listeners = bench.session.table_mut(ResourceType::Listener);
    let held = listeners.accepted.get_mut("l").unwrap();
    held.needs.filters[0].type_names = vec!["a.b.Lua".into()];
    let mut other = extension("f");
    other.value.extend([0x0a, 1, b'f']);
    bench.tells(ECDS, "x2", &[("f", other)], &[]);
    assert_eq!(
        bench.refused,
        [
            "extension_configs[f]: is a envoy.extensions.filters.http.rbac.v3.RBAC, and listener `l` \
          takes only a.b.Lua"
        ]
    );
    bench.expect_in_force(&ALL);
}

use std::{collections::HashMap, fs, path::Path};

use super::*;
use crate::model::cluster::Place;

/// Loads with these flags, variables and file.
fn try_load(
    flags: &[(&'static str, &str)],
    variables: &[(&str, &str)],
    file: Option<&str>,
) -> Result<AgentConfig, String> {
    let dir = tempfile::tempdir().unwrap();
    let mut given = Given::default();
    for (key, value) in flags {
        given.0.entry(key).or_default().push((*value).to_owned());
    }
    if let Some(text) = file {
        let path = dir.path().join("agent.yaml");
        fs::write(&path, text).unwrap();
        given.0.insert("config", vec![path.display().to_string()]);
    }
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    let environment = |name: &str| variables.get(name).map(|value| (*value).to_owned());
    load(&given, &environment).map_err(|errors| errors.to_string())
}

#[test]
fn defaults_are_what_the_help_says() {
    let config =
        try_load(&[("config_dir", "/etc/mesh/xds"), ("node_name", "n1")], &[], None).unwrap();
    assert_eq!(config.node.trust_domain.as_str(), "cluster.local");
    assert_eq!(config.node.state_dir, Path::new("/var/lib/mesh"));
    assert_eq!(config.identity.ca_dir, Path::new("/var/lib/mesh/ca"));
    assert_eq!(config.identity.certificate_ttl, Duration::from_secs(24 * 3600));
    assert_eq!(config.admin.address.to_string(), "127.0.0.1:15000");
    assert_eq!(config.admin.socket, Path::new("/run/mesh/agent.sock"));
    assert_eq!(config.capture.bpffs, Path::new("/sys/fs/bpf/mesh"));
    assert_eq!(config.capture.instance, "default");
    assert_eq!(config.capture.cgroup_root, None);
    assert!(!config.capture.bpf_log);
    assert_eq!(config.traffic.drain_timeout, Duration::from_secs(5));
    assert_eq!(config.traffic.outbound_policy, OutboundPolicy::AllowAny);
    assert_eq!(config.access_log.format, AccessLogFormat::Json);
    assert_eq!(config.access_log.sink, AccessLogSink::Stdout);
    assert_eq!(config.log.format, LogFormat::Text);
}

#[test]
fn a_node_without_a_name_takes_the_hosts() {
    let config = try_load(&[("config_dir", "/c")], &[], None).unwrap();
    assert!(!config.node.name.is_empty());
}

#[test]
fn flags_win_over_variables_over_the_file() {
    let file = "config_dir: /from/file\nnode_name: file\ninstance: file\ndrain_timeout: 1s\n\
                exclude_outbound_port: [53, '123']\nbpf_log: true\n";
    let variables = [("MESH_NODE_NAME", "variable"), ("MESH_INSTANCE", "variable")];
    let config = try_load(&[("node_name", "flag")], &variables, Some(file)).unwrap();
    assert_eq!(config.node.name, "flag");
    assert_eq!(config.capture.instance, "variable");
    assert_eq!(config.source, SourceConfig::Directory("/from/file".into()));
    assert_eq!(config.traffic.drain_timeout, Duration::from_secs(1));
    assert_eq!(config.capture.exclusions.outbound_ports, [53, 123]);
    assert!(config.capture.bpf_log);
}

#[test]
fn where_the_node_is_holds_for_its_control_plane_and_for_zones() {
    let flags = [("xds_server", "http://127.0.0.1:1"), ("locality", "eu/eu-1")];
    let place = Place { region: "eu".into(), zone: "eu-1".into(), ..Place::default() };
    let config = try_load(&flags, &[], None).unwrap();
    assert_eq!(config.local_cluster, None);
    let SourceConfig::ControlPlane(options) = config.source else { panic!() };
    assert_eq!(options.node.locality, Some(place.clone()));
    let flags = [("config_dir", "/c"), ("locality", "eu/eu-1"), ("local_cluster", "nodes")];
    let local = try_load(&flags, &[], None).unwrap().local_cluster.unwrap();
    assert_eq!((&*local.name.0, local.place), ("nodes", Some(place)));
    let local = try_load(&[flags[0], flags[2]], &[], None).unwrap().local_cluster.unwrap();
    assert_eq!(local.place, None);
    for wrong in ["", "//", "a/b/c/d"] {
        let flags = [("config_dir", "/c"), ("locality", wrong), ("local_cluster", "nodes")];
        let told = try_load(&flags, &[], None).unwrap_err();
        assert!(told.contains(&format!("`{wrong}` is not REGION/ZONE/SUBZONE")), "{told}");
    }
}

#[test]
fn a_list_comes_from_one_layer_only() {
    let file = "config_dir: /c\nexclude_outbound_port: 53\nexclude_outbound_cidr: [10.0.0.0/8]\n";
    let variables = [("MESH_EXCLUDE_OUTBOUND_PORT", "1, 2,")];
    let config = try_load(&[], &variables, Some(file)).unwrap();
    assert_eq!(config.capture.exclusions.outbound_ports, [1, 2]);
    assert_eq!(config.capture.exclusions.outbound_cidrs.len(), 1);
    let flags = [("exclude_outbound_port", "7"), ("exclude_outbound_port", "8")];
    let config = try_load(&flags, &variables, Some(file)).unwrap();
    assert_eq!(config.capture.exclusions.outbound_ports, [7, 8]);
}

#[test]
fn all_faults_are_reported_with_their_origin() {
    let file = "instance: a/b\nnode-name: x\nports: 3\nlog_format: [json]\n";
    let flags = [("drain_timeout", "5"), ("exclude_inbound_port", "0")];
    let variables = [
        ("MESH_ADMIN", "localhost"),
        ("MESH_TRUST_DOMAIN", "Cluster"),
        ("MESH_OUTBOUND_POLICY", "deny"),
        ("MESH_LOG", "mesh=loud"),
    ];
    let errors = try_load(&flags, &variables, Some(file)).unwrap_err();
    for expected in [
        "bad configuration, 11 faults:",
        "drain_timeout (from --drain-timeout): `5` is not a duration",
        "exclude_inbound_port (from --exclude-inbound-port): `0` is not a port",
        "admin (from MESH_ADMIN): `localhost` is not an address and port",
        "trust_domain (from MESH_TRUST_DOMAIN): `Cluster`",
        "outbound_policy (from MESH_OUTBOUND_POLICY): `deny` is none of allow-any, registry-only",
        "log (from MESH_LOG): `mesh=loud`",
        "agent.yaml): `a/b` must be 1 to 63",
        "node-name (from ",
        "did you mean `node_name`?",
        "ports (from ",
        "agent.yaml): takes one value, not a list",
        "config_dir: is not set: use --config-dir, MESH_CONFIG_DIR or `config_dir` in the file",
    ] {
        assert!(errors.contains(expected), "{expected:?} is missing in:\n{errors}");
    }
}

#[test]
fn a_file_that_is_none_is_a_fault() {
    for (text, expected) in [
        ("- a", "is not a mapping"),
        ("a: [", "is not YAML"),
        ("config: /x", "can't be set in the file it names"),
    ] {
        let errors = try_load(&[("config_dir", "/c")], &[], Some(text)).unwrap_err();
        assert!(errors.contains(expected), "{text:?} said {errors}");
    }
    try_load(&[("config_dir", "/c")], &[], Some("")).unwrap();
    let errors = try_load(&[("config_dir", "/c"), ("config", "/none/x")], &[], None).unwrap_err();
    assert!(errors.contains("config (from --config): /none/x can't be read"), "{errors}");
}

#[test]
fn bounds_hold() {
    for (key, value) in [
        ("certificate_ttl", "1s"),
        ("certificate_ttl", "365d"),
        ("hung_after", "1s"),
        ("hung_after", "never"),
        ("drain_timeout", "2h"),
        ("data_threads", "0"),
        ("data_threads", "1025"),
        ("socket", ""),
        ("config_dir", ""),
        ("exclude_outbound_cidr", "10.0.0.0/33"),
        ("bpf_log", "yes"),
        ("node_name", ".."),
    ] {
        let flags = [("config_dir", "/c"), (key, value)];
        assert!(try_load(&flags, &[], None).is_err(), "{key} = {value:?} was accepted");
    }
    let long = format!("/{}", "x".repeat(107));
    assert!(try_load(&[("config_dir", "/c"), ("socket", &long)], &[], None).is_err());
}

#[test]
fn doctor_needs_no_more_than_capture() {
    let config = load_capture(&Given::default(), &|_| None).unwrap();
    assert_eq!(config.instance, "default");
}

#[test]
fn the_settings_that_the_readme_shows_are_accepted() {
    let readme = include_str!("../../../README.md");
    let block = readme.split("```yaml\n").find(|block| block.starts_with("node_name:")).unwrap();
    let config = try_load(&[], &[], block.split("```").next()).unwrap();
    assert_eq!(config.node.name, "node-1");
}

#[test]
fn a_control_plane_is_a_source_and_its_settings_are_checked_together() {
    let server = ("xds_server", "unix:///run/xds.sock");
    let config = try_load(&[server, ("node_name", "n1"), ("xds_mode", "delta")], &[], None);
    let SourceConfig::ControlPlane(options) = config.unwrap().source else { panic!("source") };
    assert_eq!((options.node.id.as_str(), options.node.cluster.as_str()), ("n1", "mesh"));
    assert_eq!(options.ads.as_ref().unwrap().variant, crate::source::Variant::Delta);

    for (further, reason) in [
        (("config_dir", "/c"), "excludes xds_server"),
        (("xds_server", "http://h"), "is none of http://HOST:PORT"),
        (("xds_server", "https://h:1"), "an https:// server has to be verified"),
        (("xds_ca", "/ca.pem"), "for https:// servers only"),
        (("xds_metadata", "[]"), "is not a JSON object"),
    ] {
        let told = try_load(&[server, ("node_name", "n1"), further], &[], None).unwrap_err();
        assert!(told.contains(reason), "{further:?}: {told}");
    }
}

#[test]
fn a_bootstrap_file_excludes_other_sources_and_names_its_faults() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("envoy.yaml");
    fs::write(&path, "node: {id: n}\nflags_path: /x\n").unwrap();
    let bootstrap = ("bootstrap", path.to_str().unwrap());
    let ca = ("xds_ca", "/ca.pem");
    let told = try_load(&[bootstrap, ("config_dir", "/c"), ca], &[], None).unwrap_err();
    for reason in [
        "config_dir (from --config-dir): excludes bootstrap",
        "xds_ca (from --xds-ca): excludes bootstrap",
        "bootstrap (from --bootstrap): flags_path",
        "dynamic_resources: is missing",
    ] {
        assert!(told.contains(reason), "{reason}: {told}");
    }
}

#[test]
fn what_only_the_guard_drops_is_not_asked_for_without_it() {
    let base = [("config_dir", "/c"), ("node_name", "n1"), ("non_tcp", "drop")];
    assert_eq!(try_load(&base, &[], None).unwrap().capture.guard, Guard::Auto);
    let told = try_load(&[&base[..], &[("guard", "off")]].concat(), &[], None).unwrap_err();
    assert!(told.contains("non_tcp (from --non-tcp): drop is for the guard"), "{told}");
}

#[test]
fn a_bootstrap_file_without_a_node_is_for_the_one_the_agent_is_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("envoy.yaml");
    for (text, id) in [
        ("static_resources: {}\n", "n1"),
        ("node: {cluster: c}\nstatic_resources: {}\n", "n1"),
        ("node: {id: other}\nstatic_resources: {}\n", "other"),
    ] {
        fs::write(&path, text).unwrap();
        let base = [("bootstrap", path.to_str().unwrap()), ("node_name", "n1")];
        let SourceConfig::ControlPlane(xds) = try_load(&base, &[], None).unwrap().source else {
            panic!("{text} is no bootstrap")
        };
        assert_eq!(xds.node.id, id, "{text}");
    }
}

#[test]
fn beside_a_bootstrap_file_an_sds_server_of_its_own_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("envoy.yaml");
    fs::write(&path, "node: {id: n}\nstatic_resources: {}\n").unwrap();
    let base = [
        ("bootstrap", path.to_str().unwrap()),
        ("certificates", "sds"),
        ("sds_server", "https://h:1"),
    ];
    let config = try_load(&[&base[..], &[("xds_ca", "/ca.pem")]].concat(), &[], None).unwrap();
    assert!(config.identity.sds.unwrap().server.is_some());
    let told = try_load(&base, &[], None).unwrap_err();
    assert!(told.contains("an https:// server has to be verified"), "{told}");
}

#[test]
fn certificates_by_sds_are_said_whole_or_not_at_all() {
    let base = [("config_dir", "/c"), ("node_name", "n1")];
    let load =
        |further: &[(&'static str, &'static str)]| try_load(&[&base, further].concat(), &[], None);
    assert_eq!(load(&[]).unwrap().identity.sds, None);
    let sds = ("certificates", "sds");
    let config = load(&[sds]).unwrap().identity.sds.unwrap();
    assert!(config.server.is_none());
    assert_eq!((config.names, &*config.validation), ("{identity}".parse().unwrap(), "ROOTCA"));
    let server = ("sds_server", "unix:///run/spire/agent.sock");
    let config = load(&[sds, server, ("sds_mode", "delta")]).unwrap().identity.sds.unwrap();
    let options = config.server.unwrap();
    assert!(options.ads.is_none() && options.listeners.is_none());
    assert_eq!(options.secrets.unwrap().variant, crate::source::Variant::Delta);
    for (further, reason) in [
        (vec![server], "sds_server (from --sds-server): is for certificates: sds"),
        (vec![sds, ("sds_mode", "delta")], "there is none"),
        (vec![sds, ("sds_server", "https://h:1")], "an https:// server has to be verified"),
        (vec![sds, ("sds_secret_name", "{pod}")], "placeholders are {identity}"),
        (vec![("certificates", "spire")], "is neither builtin nor sds"),
    ] {
        let told = load(&further).unwrap_err();
        assert!(told.contains(reason), "{further:?}: {told}");
    }
}

//! Text that is not what it should be: nothing panics, and the place is named.

use super::*;

/// Checks that one file is refused once, with this path and a reason that contains
/// `reason`.
#[track_caller]
fn refused(name: &str, text: &[u8], path: &str, reason: &str) {
    let lines = decode(&[(name, text)]).map(|_| ()).unwrap_err();
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    let found = line.strip_prefix(path).unwrap_or_else(|| panic!("{line} is not at {path}"));
    assert!(found.contains(reason), "{line} does not say {reason}");
}

#[test]
fn malformed_text_is_refused_by_line_and_column() {
    refused("a.yaml", b"resources:\n- name: [\n", "a.yaml:3:1: ", "did not find expected node");
    refused("a.yaml", b"resources:\n\t- name: x\n", "a.yaml:2:1: ", "cannot start any token");
    refused("a.yaml", b"a: 1\nb: \xff\xfe\n", "a.yaml:2:4: ", "not UTF-8");
    refused("a.yaml", b"version_info: a\nversion_info: b\n", "a.yaml:", "given twice");
    refused("a.yaml", b"a: !!binary aGk=\nb: *missing\n", "a.yaml:2:4: ", "unknown anchor");
    refused("a.yaml", b"x: .nan\n", "a.yaml:", "finite");
    refused("a.yaml", b"[1, 2]: x\n", "a.yaml:", "expected a string");
    refused("a.json", b"{\"resources\": [}", "a.json:1:16: ", "expected value");
    refused("a.json", b"{} {}", "a.json:1:4: ", "trailing characters");
    refused("a.json", b"{\"a\": 1, \"a\": 2}", "a.json:1:", "given twice");
}

#[test]
fn text_that_would_take_the_parser_hours_is_refused_at_once() {
    let braces = "{\"a\":".repeat(100_000);
    refused("a.yaml", braces.as_bytes(), "a.yaml:1:", "nested more than 1000 deep");
    let lists = format!("a:\n  {}", "[".repeat(100_000));
    refused("a.yaml", lists.as_bytes(), "a.yaml:2:", "nested more than 1000 deep");
    let documents = "--- {}\n".repeat(500_000);
    refused("a.yaml", documents.as_bytes(), "a.yaml:4097:1: ", "more than 4096 documents");
}

#[test]
fn an_empty_file_is_half_written_not_a_wish_for_nothing() {
    for text in ["", "\n\n", "# only a remark\n", "---\n---\n", "null\n"] {
        refused("a.yaml", text.as_bytes(), "a.yaml:1:1: ", "is empty");
    }
    refused("a.json", b"", "a.json:", "EOF");
    assert!(accepted("resources: []\n").clusters.is_empty());
    assert!(decode(&[]).unwrap().resources.listeners.is_empty());
}

#[test]
fn what_is_no_resource_is_refused() {
    refused("a.yaml", b"hello\n", "a.yaml: ", "must hold");
    refused("a.yaml", b"42\n", "a.yaml: ", "must hold");
    refused("a.yaml", b"- hello\n", "a.yaml: [0]: ", "must be a resource");
    refused("a.yaml", b"resources: {a: b}\n", "a.yaml: resources: ", "must be a list");
    refused("a.yaml", b"resources: []\nresource: []\n", "a.yaml: resource: ", "unknown field");
    refused("a.yaml", b"name: x\n", "a.yaml: ", "has no @type");
    refused("a.yaml", b"'@type': 7\n", "a.yaml: ", "must be a string");
    refused(
        "a.yaml",
        b"resources:\n- '@type': type.googleapis.com/envoy.config.cluster.v2.Cluster\n  name: x\n",
        "a.yaml: resources[0]: ",
        "unknown @type `type.googleapis.com/envoy.config.cluster.v2.Cluster`",
    );
    refused(
        "a.yaml",
        b"type_url: a/b\nresources:\n- '@type': x/envoy.config.cluster.v3.Cluster\n  name: x\n",
        "a.yaml: resources[0]: ",
        "not type_url's",
    );
    refused("a.yaml", b"'@type': x/envoy.config.cluster.v3.Cluster\n", "a.yaml: ", "has no name");
}

#[test]
fn aliases_nesting_and_size_are_bounded() {
    let mut laughs = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n".to_owned();
    for i in 1..12 {
        let list = vec![format!("*a{}", i - 1); 9].join(", ");
        laughs.push_str(&format!("a{i}: &a{i} [{list}]\n"));
    }
    refused("a.yaml", laughs.as_bytes(), "a.yaml:", "");

    refused("a.yaml", "[".repeat(100_000).as_bytes(), "a.yaml:", "");
    refused("a.json", "[".repeat(100_000).as_bytes(), "a.json:", "recursion limit");
    refused("a.yaml", format!("{}x{}", "[".repeat(500), "]".repeat(500)).as_bytes(), "a.yaml:", "");

    let huge = vec![b'#'; 9 << 20];
    refused("a.yaml", &huge, "a.yaml: ", "is too large");
    let many = "- 1\n".repeat((1 << 20) + 1);
    refused("a.yaml", many.as_bytes(), "a.yaml:", "more than 1048576 values");
}

#[test]
fn rules_nested_too_deep_are_refused() {
    let depth = 60;
    let rules = format!("{}any: true{}", "{not_rule: ".repeat(depth), "}".repeat(depth));
    let yaml = refused::network(&format!(
        "rules: {{policies: {{p: {{permissions: [{{{rules}}}], principals: [{{any: true}}]}}}}}}"
    ));
    let lines = decode(&[("a.yaml", yaml.as_bytes())]).map(|_| ()).unwrap_err();
    assert!(!lines.is_empty());
}

#[test]
fn only_regular_visible_files_of_the_right_names_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    for name in [".hidden.yaml", "notes.txt", "a.yaml~", "yaml", "#a.yaml#"] {
        fs::write(path.join(name), "[").unwrap();
    }
    assert!(validate(path).is_ok());
    fs::create_dir(path.join("dir.yaml")).unwrap();
    std::os::unix::fs::symlink("/nonexistent/x", path.join("gone.json")).unwrap();
    nix::unistd::mkfifo(&path.join("fifo.yml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let rejected: Vec<_> = validate(path).unwrap_err().iter().map(|r| r.path.clone()).collect();
    assert_eq!(rejected, ["dir.yaml", "fifo.yml", "gone.json"]);
}

#[test]
fn labels_and_references() {
    let cluster = "resources:\n- '@type': x/envoy.config.cluster.v3.Cluster\n  name: a\n";
    let versioned = format!("version_info: 7\n{cluster}");
    assert_eq!(decode(&[("a.yml", versioned.as_bytes())]).unwrap().label, "7");
    let label = decode(&[("a.yml", cluster.as_bytes())]).unwrap().label;
    assert!(label.starts_with("sha256:") && label.len() == 19, "{label}");

    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), format!("{cluster}  type: EDS\n")).unwrap();
    let rejected = validate(directory.path()).unwrap_err();
    assert_eq!(
        rejected[0].to_string(),
        "clusters[a].eds_cluster_config: there is no ClusterLoadAssignment `a`"
    );
    let rejected = validate(&directory.path().join("none")).unwrap_err();
    assert!(rejected[0].path.ends_with("/none"));
}

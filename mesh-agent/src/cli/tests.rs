use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_of_the_help_parses() {
    for line in [
        "mesh-agent run",
        "mesh-agent run --node-name n --config-dir d --bpf-log --exclude-outbound-port 1 \
         --exclude-outbound-port 2 --outbound-policy registry-only --drain-timeout 5s",
        "mesh-agent run --bpf-log=false",
        "mesh-agent enroll web-1 -n shop -s web --netns /run/netns/web-1 --label app=web",
        "mesh-agent enroll web-1 -n shop -s web --pid 4711 --mtls permissive --output json",
        "mesh-agent unenroll shop.web-1 --socket /x",
        "mesh-agent pods -o json",
        "mesh-agent status",
        "mesh-agent config dump",
        "mesh-agent config validate /etc/mesh",
        "mesh-agent connections --workload u1",
        "mesh-agent ca init --dir /x --trust-domain cluster.local",
        "mesh-agent doctor --instance a --bpffs /x",
        "mesh-agent completions bash",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    for line in [
        "mesh-agent",
        "mesh-agent fly",
        "mesh-agent run --outbound-policy deny",
        "mesh-agent run --node-name a --node-name b",
        "mesh-agent enroll web -n shop -s web",
        "mesh-agent enroll web -n shop -s web --pid 1 --netns /x",
        "mesh-agent enroll web -n shop -s web --pid 1 --label app",
        "mesh-agent doctor --node-name a",
        "mesh-agent ca init --dir /x --trust-domain UPPER",
    ] {
        let error = parse(line).map(|_| line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn help_names_defaults_variables_and_exit_codes() {
    let mut command = Cli::command();
    let run = command.find_subcommand_mut("run").unwrap().render_long_help().to_string();
    // Where lines are broken depends on who else uses the parser.
    let run = run.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "--admin <ADDRESS>",
        "[env: MESH_ADMIN] [default: 127.0.0.1:15000]",
        "[possible values: allow-any, registry-only]",
        "Exit codes:",
        "Examples:",
    ] {
        assert!(run.contains(expected), "{expected:?} is missing in:\n{run}");
    }
    let all = command.render_long_help().to_string();
    assert!(all.contains("no agent answers on the control socket"), "{all}");
}

#[test]
fn an_agent_that_is_not_there_has_its_own_exit_code() {
    let cli = parse("mesh-agent pods --socket /none/agent.sock").unwrap();
    let error = dispatch(cli.command).unwrap_err();
    assert_eq!(error.code(), 3);
    assert!(error.to_string().contains("agent at /none/agent.sock: it is not there"), "{error}");
}

#[test]
fn a_pod_that_makes_no_sense_is_wrong_usage() {
    let cli = parse("mesh-agent enroll web -n a/b -s web --pid 1 --socket /none").unwrap();
    assert_eq!(dispatch(cli.command).unwrap_err().code(), 2);
    let cli = parse("mesh-agent unenroll ../x --socket /none").unwrap();
    assert_eq!(dispatch(cli.command).unwrap_err().code(), 2);
}

#[test]
fn a_run_without_configuration_lists_every_fault() {
    let cli = parse("mesh-agent run --config-dir= --drain-timeout 5 --admin x").unwrap();
    let error = dispatch(cli.command).unwrap_err();
    assert_eq!(error.code(), 2);
    for key in ["config_dir", "drain_timeout", "admin"] {
        assert!(error.to_string().contains(key), "{error}");
    }
}

/// Answers one request on a socket with fixed bytes.
fn agent_that_says(answer: &'static str) -> (tempfile::TempDir, String) {
    use std::io::Read as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4096];
        _ = stream.read(&mut head).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let path = path.display().to_string();
    (dir, path)
}

#[test]
fn answers_become_output_and_exit_codes() {
    for (answer, code) in [
        ("HTTP/1.1 409 Conflict\r\ncontent-length: 15\r\n\r\n{\"error\":\"why\"}", 4),
        ("HTTP/1.1 500 Oh\r\ncontent-length: 15\r\n\r\n{\"error\":\"why\"}", 1),
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnope", 1),
        ("HTTP/1.1 200 OK\r\ncontent-length: 400\r\n\r\n[", 3),
        ("", 3),
    ] {
        let (_dir, socket) = agent_that_says(answer);
        let cli = parse(&format!("mesh-agent pods --socket {socket}")).unwrap();
        let error = dispatch(cli.command).unwrap_err();
        assert_eq!(error.code(), code, "{answer:?} gave {error}");
        if code == 4 {
            assert_eq!(error.to_string(), "the agent refused: why");
        }
    }
    let (_dir, socket) = agent_that_says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]");
    let cli = parse(&format!("mesh-agent pods --output json --socket {socket}")).unwrap();
    assert_eq!(dispatch(cli.command).unwrap(), Output { text: "[]\n".into(), code: 0 });
}

#[test]
fn completions_name_the_commands() {
    let cli = parse("mesh-agent completions bash").unwrap();
    let output = dispatch(cli.command).unwrap();
    assert!(output.text.contains("unenroll"));
}

/// The README's blocks of YAML that begin with `key`.
fn readme_yaml(key: &str) -> Vec<&'static str> {
    let readme = include_str!("../../../README.md");
    let blocks = readme.split("```yaml\n").skip(1);
    let blocks = blocks.filter_map(|block| block.split("```").next());
    blocks.filter(|block| block.starts_with(key)).collect()
}

#[test]
fn what_the_readme_shows_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let (configuration, pods) = (readme_yaml("resources:"), readme_yaml("pods:"));
    let settings = readme_yaml("node_name:");
    assert_eq!((configuration.len(), pods.len(), settings.len()), (2, 1, 1));

    // The gateway leads to what the other one, which stands below it, has.
    for (i, (yaml, listeners)) in configuration.iter().rev().zip([2, 3]).enumerate() {
        std::fs::write(directory.path().join(format!("{i}.yaml")), yaml).unwrap();
        let line = format!("mesh-agent config validate {}", directory.path().display());
        let output = dispatch(parse(&line).unwrap().command).unwrap();
        assert_eq!(output.code, 0, "{}", output.text);
        assert!(output.text.contains(&format!("{listeners} listener")), "{}", output.text);
    }

    let file = directory.path().join("pods.list");
    std::fs::write(&file, pods[0]).unwrap();
    assert_eq!(crate::admin::PodsFile::read(&file).unwrap().pods.len(), 1);
}

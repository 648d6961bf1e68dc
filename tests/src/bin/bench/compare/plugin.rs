//! Contenders that somebody else brings: a script that starts one, and one that ends it.
//!
//! `NAME.up` runs in the client pod's network namespace and cgroup, with
//! `BENCH_CLIENT_NETNS`, `BENCH_SERVER_NETNS` (paths), `BENCH_CLIENT_IP`,
//! `BENCH_SERVER_IP`, `BENCH_SERVER_CGROUP` (a directory; what it starts for the server's
//! side belongs there) and `BENCH_DIRECTORY` in its environment. It leaves its
//! programs running in the background, with their output elsewhere than its own, and prints
//! one JSON object: the address to dial from the client's pod for each of `http1`, `http2`,
//! `grpc`, `sink`, `source` (8080, 8081, 8082, 9000, 9001 on the server) that it carries.
//! `NAME.down` gets the same environment.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path};

use tests::Pod;

use super::workload::Port;

/// One contender's scripts.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    pub(crate) name: String,
    up: String,
    down: String,
}

impl Plugin {
    /// Those in `directory`, by name.
    pub(crate) fn all(directory: &Path) -> Vec<Self> {
        let listed = fs::read_dir(directory)
            .unwrap_or_else(|error| panic!("list {}: {error}", directory.display()));
        let mut plugins: Vec<Self> = listed
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_str()?.strip_suffix(".up")?.to_owned();
                let path = fs::canonicalize(path).ok()?;
                let down = path.with_file_name(format!("{name}.down"));
                assert!(down.is_file(), "{} has no {}", path.display(), down.display());
                let text = |path: &Path| path.display().to_string();
                Some(Self { name, up: text(&path), down: text(&down) })
            })
            .collect();
        plugins.sort_by(|a, b| a.name.cmp(&b.name));
        plugins
    }

    /// Where to dial for each port that it carries.
    ///
    /// # Errors
    /// What the script said, where it fails or prints something else.
    pub(crate) fn up(
        &self,
        client: &Pod,
        server: &Pod,
    ) -> Result<BTreeMap<Port, SocketAddr>, String> {
        let said = run(&self.up, client, server)?;
        let addresses: BTreeMap<String, SocketAddr> = serde_json::from_str(&said)
            .map_err(|error| format!("{} printed no addresses: {error}: {said}", self.up))?;
        let known = |name: &str| Port::ALL.into_iter().find(|port| port.key() == name);
        let ports = addresses.into_iter().map(|(name, address)| {
            let port = known(&name).ok_or_else(|| format!("{}: what is {name}?", self.up))?;
            Ok((port, address))
        });
        let ports: BTreeMap<Port, SocketAddr> = ports.collect::<Result<_, String>>()?;
        if ports.is_empty() { Err(format!("{} carries no port", self.up)) } else { Ok(ports) }
    }

    pub(crate) fn down(&self, client: &Pod, server: &Pod) -> Result<(), String> {
        run(&self.down, client, server).map(drop)
    }
}

fn run(script: &str, client: &Pod, server: &Pod) -> Result<String, String> {
    let environment = [
        ("BENCH_CLIENT_NETNS", client.netns().path().display().to_string()),
        ("BENCH_SERVER_NETNS", server.netns().path().display().to_string()),
        ("BENCH_CLIENT_IP", client.ip().to_string()),
        ("BENCH_SERVER_IP", server.ip().to_string()),
        ("BENCH_SERVER_CGROUP", server.cgroup().display().to_string()),
        ("BENCH_DIRECTORY", client.node().directory().display().to_string()),
    ]
    .map(|(name, value)| format!("{name}={value}"));
    let argv: Vec<&str> = std::iter::once("env")
        .chain(environment.iter().map(String::as_str))
        .chain([script])
        .collect();
    let ran = client.run(&argv);
    match ran.code() {
        Some(0) => Ok(ran.stdout().to_owned()),
        _ => Err(format!("{script} failed\n{}{}", ran.stdout(), ran.stderr())),
    }
}

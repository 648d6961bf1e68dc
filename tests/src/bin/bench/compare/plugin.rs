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

use super::{lane::Contender, workload::Port};

/// One contender's scripts.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    pub(crate) name: String,
    up: String,
    down: String,
}

impl Plugin {
    /// Those in `directory`, by name.
    ///
    /// # Errors
    /// It can't be listed, a plug-in is not whole, or has the name of a contender that is there.
    pub(crate) fn all(directory: &Path) -> Result<Vec<Self>, String> {
        let listed = fs::read_dir(directory)
            .map_err(|error| format!("--plugins {}: {error}", directory.display()))?;
        let mut plugins: Vec<Self> = Vec::new();
        for path in listed.filter_map(|entry| fs::canonicalize(entry.ok()?.path()).ok()) {
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".up"));
            let Some(name) = name.map(str::to_owned) else { continue };
            if Contender::ALL.into_iter().any(|contender| contender.name() == name) {
                return Err(format!("{}: there is a contender of that name", path.display()));
            }
            let down = path.with_file_name(format!("{name}.down"));
            if !down.is_file() {
                return Err(format!("{}: there is no {}", path.display(), down.display()));
            }
            let text = |path: &Path| path.display().to_string();
            plugins.push(Self { name, up: text(&path), down: text(&down) });
        }
        plugins.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(plugins)
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

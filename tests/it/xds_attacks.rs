//! Clients, control planes and disks that mean no good: what serves goes on serving.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};
use tests::{
    Agent, Inbound, Mesh, MeshConfig, Process, Service, Testbed,
    control_plane::ControlPlane,
    eventually, eventually_within, mesh,
    pki::{Pki, Validity},
};

use crate::{
    sds::{Issued, by_ads, certificate, issued, of_pod, presents, roots, talks},
    xds::named,
    xds_on_demand::{Driven, ads, driven, host, lookups, to_web, with_filter},
};

fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// One curl that asks for so many things that nobody has, each named in a header, from
/// `first` on, many at a time.
fn flood(directory: &Path, header: &str, first: usize, requests: usize) -> Command {
    let lines: String = (first..first + requests)
        .map(|i| {
            let next = if i == first { "" } else { "next\n" };
            format!(
                "{next}url = \"{}\"\nheader = \"{header}: flood-{i}.test\"\noutput = \"/dev/null\"\n\
                 max-time = 40\nwrite-out = \"%{{http_code}}\\n\"\n",
                mesh::WEB
            )
        })
        .collect();
    let file = directory.join(format!("flood-{first}.curl"));
    fs::write(&file, lines).unwrap();
    let mut curl = Command::new("curl");
    curl.args(["-s", "--parallel", "--parallel-max", "300", "--parallel-immediate", "-K"]);
    curl.arg(file);
    curl
}

fn held(agent: &Agent) -> f64 {
    agent.metrics().sum("mesh_on_demand_held", &[])
}

/// Two of them from the mesh's client, of 600 requests each, as many of which wait as may.
fn floods(mesh: &Mesh, header: &str) -> [Process; 2] {
    let directory = mesh.bed.node(1).directory();
    let floods = [0, 1].map(|n| {
        let flood = flood(&directory, header, n * 1000, 600);
        mesh.client.starts(&format!("flood-{n}"), flood)
    });
    eventually("the flood is held", || {
        let held = held(mesh.near());
        if held >= 200.0 { Ok(()) } else { Err(held) }
    });
    floods
}

/// The status codes that [`flood`] has written.
fn codes(flood: &Process) -> Vec<String> {
    flood.wait();
    // Curl shows its progress as well.
    let is_code = |line: &&str| line.len() == 3 && line.bytes().all(|b| b.is_ascii_digit());
    flood.log().lines().map(str::trim).filter(is_code).map(str::to_owned).collect()
}

fn all_is_forgotten(agent: &Agent) {
    eventually("all is forgotten", || {
        let metrics = agent.metrics();
        let left = ["mesh_on_demand_held", "mesh_on_demand_names"].map(|m| metrics.sum(m, &[]));
        if left[0] == 0.0 && left[1] <= 1.0 { Ok(()) } else { Err(left) }
    });
}

#[test]
fn a_flood_of_hosts_that_nobody_has_takes_neither_memory_nor_the_neighbours_turn() {
    let Driven { mut control_plane, mesh } = driven("attack-hosts", |all| {
        let routes = named(all, "RouteConfiguration", "web");
        routes["vhds"] = json!({ "config_source": ads() });
        routes["virtual_hosts"][0]["domains"] = json!(["own.test"]);
        with_filter(all, "web", json!({}));
        all.push(host("web/shop.test", "shop.test", to_web()));
    });
    let neighbour = mesh.enrolled_pod("neighbour");
    let agent = mesh.near();
    let own = || neighbour.curl(mesh::WEB).header("Host: own.test");
    own().expect_status(200);
    let before = resident_kib(agent.process().pid());

    // The server hears, and does not answer.
    control_plane.behaves("mute", true.into());
    let floods = floods(&mesh, "Host");
    for _ in 0..10 {
        own().expect_status(200);
        assert!(held(agent) <= 256.0);
    }
    // It answers again: the neighbour finds what there is, in the middle of it.
    control_plane.behaves("mute", false.into());
    control_plane.drops_streams();
    eventually_within(Duration::from_secs(30), "the neighbour finds its host", || {
        let response = neighbour.curl(mesh::WEB).header("Host: shop.test").send();
        if response.status() == Some(200) { Ok(()) } else { Err(format!("{response:?}")) }
    });
    for codes in floods.iter().map(codes) {
        assert_eq!(codes.len(), 600, "{codes:?}");
        assert!(codes.iter().all(|code| ["404", "503"].contains(&code.as_str())), "{codes:?}");
    }
    assert!(lookups(agent, "virtual_hosts", "overflow") > 0.0);
    all_is_forgotten(agent);
    let grown = resident_kib(agent.process().pid()).saturating_sub(before);
    println!("{grown} KiB more after 1200 hosts");
    assert!(grown < 128 << 10, "{grown} KiB");
    own().expect_status(200);
    control_plane.expect_no_violations();
}

#[test]
fn a_flood_of_clusters_that_a_late_server_answers_leaves_nothing_behind() {
    let odcds = json!({ "source": ads(), "timeout": "1s" });
    let Driven { mut control_plane, mesh } = driven("attack-clusters", |all| {
        named(all, "RouteConfiguration", "web")["virtual_hosts"][0]["routes"] = json!([
            { "match": { "prefix": "/own" }, "route": { "cluster": "web" } },
            { "match": { "prefix": "/" }, "route": { "cluster_header": "x-cluster" } },
        ]);
        with_filter(all, "web", json!({ "odcds": odcds }));
    });
    let neighbour = mesh.enrolled_pod("neighbour");
    let agent = mesh.near();
    let own = || neighbour.curl(&format!("{}own", mesh::WEB));
    own().expect_status(200);
    let before = resident_kib(agent.process().pid());

    // Each answer comes when those who asked have gone.
    control_plane.behaves("delay", json!(2.5));
    let floods = floods(&mesh, "x-cluster");
    for _ in 0..10 {
        own().expect_status(200);
        assert!(held(agent) <= 256.0);
    }
    for codes in floods.iter().map(codes) {
        assert_eq!(codes.len(), 600, "{codes:?}");
        assert!(codes.iter().all(|code| code == "503"), "{codes:?}");
    }
    assert!(lookups(agent, "clusters", "overflow") > 0.0);
    assert!(lookups(agent, "clusters", "timeout") > 0.0);
    control_plane.behaves("delay", 0.into());
    eventually_within(Duration::from_secs(60), "what is there is found", || {
        let response = neighbour.curl(mesh::WEB).header("x-cluster: later").send();
        if response.status() == Some(200) { Ok(()) } else { Err(format!("{response:?}")) }
    });
    all_is_forgotten(agent);
    // What a new stream asks for is all that is wanted.
    control_plane.drops_streams();
    eventually("a new stream asks for all and for one", || {
        let requests = control_plane.requests();
        let of_clusters = requests.iter().filter(|request| request["names"][0] == "*");
        let mut last = of_clusters.filter(|request| request["nonce"] == "").map(|r| &r["names"]);
        match last.next_back() {
            Some(names) if *names == json!(["*", "later"]) => Ok(()),
            names => Err(names.cloned()),
        }
    });
    let grown = resident_kib(agent.process().pid()).saturating_sub(before);
    println!("{grown} KiB more after 1200 clusters");
    assert!(grown < 128 << 10, "{grown} KiB");
    control_plane.expect_no_violations();
}

/// A small disk over a directory, until it is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn over(directory: PathBuf, bytes: usize) -> Self {
        fs::create_dir_all(&directory).unwrap();
        let size = format!("size={bytes}");
        mount(Some("none"), &directory, Some("tmpfs"), MsFlags::empty(), Some(size.as_str()))
            .expect("mount a tmpfs");
        Self(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = umount(&self.0);
    }
}

fn config_endpoints(config: &MeshConfig) -> Value {
    let is_assignment = |r: &Value| r["cluster_name"] == "web";
    config.resources().into_iter().find(is_assignment).unwrap()["endpoints"].clone()
}

#[test]
fn a_full_disk_and_damaged_files_do_not_keep_the_agent_from_serving() {
    let bed = Testbed::two_nodes("attack-disk");
    let (client, server) = (bed.node(1).pod("client").start(), bed.node(2).pod("web").start());
    let _program = server.runs_nginx(mesh::WEB_PORT);
    let web = Service::http("web", "10.96.0.10:80").backed_by(&server, mesh::WEB_PORT);
    let inbound = Inbound::http(&server, mesh::WEB_PORT).open();
    let config = MeshConfig::new().service(&web).inbound(&inbound);
    let mut control_plane = ControlPlane::start(bed.node(1), &config);
    let disk = SmallDisk::over(bed.node(1).state_dir().join("config"), 4096);
    // More than fits: one page is filled by somebody else.
    let filler = disk.0.join("filler");
    fs::write(&filler, [0; 4096]).unwrap();
    let mut agents = [(1, &client), (2, &server)].map(|(number, pod)| {
        let flags = ["--xds-server", &control_plane.uri(), "--xds-mode", "delta"];
        bed.node(number).agent().with_pod(pod).flags(&flags).start()
    });
    agents[0].logs(&["the last good configuration can't be written", "No space left"]);
    client.curl(mesh::WEB).expect_status(200);
    assert!(!disk.0.join("last-good.tmp").exists(), "half a file stays");
    // What comes is served, written or not.
    let mut resources = config.resources();
    let is_assignment = |r: &&mut Value| r["cluster_name"] == "web";
    resources.iter_mut().find(is_assignment).unwrap()["endpoints"] = json!([]);
    control_plane.serves(resources);
    eventually("no endpoint is left", || {
        let response = client.curl(mesh::WEB).send();
        if response.status() == Some(503) { Ok(()) } else { Err(format!("{response:?}")) }
    });
    control_plane.serves(config.resources());
    eventually("there is one again", || {
        let response = client.curl(mesh::WEB).send();
        if response.status() == Some(200) { Ok(()) } else { Err(format!("{response:?}")) }
    });
    // A directory that can't be written to at all, at a start and for what comes then.
    agents[0].kill_9();
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, &disk.0, None::<&str>, flags, None::<&str>).expect("make it read-only");
    agents[0].restart();
    agents[0].logs(&["the last good configuration can't be written", "Read-only file system"]);
    for (endpoints, status) in [(json!([]), 503), (config_endpoints(&config), 200)] {
        let mut resources = config.resources();
        resources.iter_mut().find(is_assignment).unwrap()["endpoints"] = endpoints;
        control_plane.serves(resources);
        eventually(&format!("it is answered {status}"), || {
            let response = client.curl(mesh::WEB).send();
            if response.status() == Some(status) { Ok(()) } else { Err(format!("{response:?}")) }
        });
    }
    drop(disk);

    // Whatever is in its place: said, and gone on without.
    let file = bed.node(1).state_dir().join("config/last-good");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    agents[0].kill_9();
    for (content, told) in [
        (b"garbage".to_vec(), "its header is unknown"),
        (b"mesh-last-good 1\n".to_vec(), "it is cut short"),
        ([&b"mesh-last-good 1\n"[..], &[0; 4096]].concat(), "its checksum is wrong"),
    ] {
        fs::write(&file, content).unwrap();
        agents[0].restart();
        agents[0].logs(&[told]);
        client.curl(mesh::WEB).expect_status(200);
        agents[0].kill_9();
    }
    // A sparse file that would not fit into memory is not read.
    fs::File::create(&file).unwrap().set_len((1 << 30) + 1).unwrap();
    agents[0].restart();
    agents[0].logs(&["is too large"]);
    client.curl(mesh::WEB).expect_status(200);
    control_plane.expect_no_violations();
}

#[test]
fn a_storm_of_certificates_leaves_the_last_good_one() {
    let pki = Pki::foreign();
    let mut first = None;
    let Issued { mut control_plane, mesh } = issued(
        "attack-secrets",
        |client, server| {
            let theirs = of_pod(&pki, server);
            let secrets = vec![
                certificate(&client.identity(), &of_pod(&pki, client)),
                certificate(&server.identity(), &theirs),
                roots("ROOTCA", &[&pki]),
            ];
            first = Some(theirs);
            secrets
        },
        by_ads("delta"),
    );
    let config = mesh.config.resources();
    let mine = certificate(&mesh.client.identity(), &of_pod(&pki, &mesh.client));
    let identity = mesh.server.identity();
    let outsider = mesh.plain_pod("outsider");
    let first = first.unwrap();
    presents(&mesh, &outsider, &first);
    let mut talk = mesh.client.connects(mesh::SERVER.parse().unwrap());
    talk.echoes("before");
    let with = |theirs: &[Value], trusted: &[&Pki]| {
        let more = [vec![mine.clone(), roots("ROOTCA", trusted)], theirs.to_vec()].concat();
        [config.clone(), more].concat()
    };
    // Neither what is over nor what has not begun takes the place of what is good.
    for validity in [Validity::Past, Validity::Future] {
        let odd = pki.issue(&[&identity], validity);
        control_plane.serves(with(&[certificate(&identity, &odd)], &[&pki]));
        eventually("it is refused", || {
            let error = mesh.far().status()["certificates"][0]["last_error"].to_string();
            if error == "null" { Err(mesh.far().status()) } else { Ok(()) }
        });
        presents(&mesh, &outsider, &first);
        talks(&mesh);
        control_plane.serves(with(&[certificate(&identity, &first)], &[&pki]));
    }
    // Many in a row, gone in between.
    let mut last = first;
    for round in 0..40 {
        last = of_pod(&pki, &mesh.server);
        let theirs = certificate(&identity, &last);
        let served = if round % 4 == 3 { vec![] } else { vec![theirs] };
        control_plane.serves(with(&served, &[&pki]));
        if round % 10 == 0 {
            control_plane.drops_streams();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    control_plane.serves(with(&[certificate(&identity, &last)], &[&pki]));
    presents(&mesh, &outsider, &last);
    talk.echoes("through all of it");
    talks(&mesh);
    // A CA that vouches for nobody here: nothing gets through, and what was lives again.
    let foreign = Pki::foreign();
    control_plane.serves(with(&[certificate(&identity, &last)], &[&foreign]));
    eventually("nobody is trusted", || {
        let (heard, how) = mesh.client.connects(mesh::SERVER.parse().unwrap()).rest();
        if heard.is_empty() { Ok(()) } else { Err((heard, how)) }
    });
    control_plane.serves(with(&[certificate(&identity, &last)], &[&pki]));
    eventually_within(Duration::from_secs(30), "all is well", || {
        let certificates = mesh.far().status()["certificates"].clone();
        if certificates[0]["last_error"].is_null() { Ok(()) } else { Err(certificates) }
    });
    presents(&mesh, &outsider, &last);
    talks(&mesh);
    control_plane.expect_no_violations();
}

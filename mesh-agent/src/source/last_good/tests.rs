use envoy_types::pb::envoy::config::{
    cluster::v3::{Cluster, cluster},
    endpoint::v3::ClusterLoadAssignment,
    route::v3::VirtualHost,
};

use super::*;

fn cluster(name: &str) -> (Key, Option<Arc<[u8]>>) {
    let cluster = Cluster {
        name: name.to_owned(),
        lb_policy: cluster::LbPolicy::ClusterProvided as i32,
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::OriginalDst as i32,
        )),
        ..Cluster::default()
    };
    ((ResourceType::Cluster, name.into()), Some(cluster.encode_to_vec().into()))
}

fn assignment(name: &str) -> (Key, Option<Arc<[u8]>>) {
    let message =
        ClusterLoadAssignment { cluster_name: name.to_owned(), ..ClusterLoadAssignment::default() };
    ((ResourceType::Endpoints, name.into()), Some(message.encode_to_vec().into()))
}

fn raw(resources: Vec<(Key, Option<Arc<[u8]>>)>) -> Raw {
    Raw { resources, ..Raw::default() }
}

fn names(restored: &Restored) -> Vec<String> {
    let mut names: Vec<_> =
        restored.resources.clusters.iter().map(|cluster| cluster.name.to_string()).collect();
    names.extend(restored.resources.assignments.iter().map(|(name, _)| name.to_string()));
    names
}

#[test]
fn what_was_applied_comes_back_and_changes_count() {
    let dir = tempfile::tempdir().unwrap();
    let written = LastGood::new(dir.path(), "ads");
    assert!(written.load().unwrap().is_none());
    written.replaced(raw(vec![cluster("a"), cluster("b")]), "v1");
    let gone = (cluster("a").0, None);
    written.changed(raw(vec![gone, assignment("e")]), "v2");
    written.flush().unwrap();

    let again = LastGood::new(dir.path(), "ads");
    let restored = again.load().unwrap().unwrap();
    assert_eq!(names(&restored), ["b", "e"]);
    assert_eq!(restored.label, "v2");
    assert!(restored.saved_at.elapsed().unwrap() < Duration::from_secs(60));
    // A delta after a restart builds on what was restored.
    again.changed(raw(vec![cluster("c")]), "v3");
    again.flush().unwrap();
    let restored = LastGood::new(dir.path(), "ads").load().unwrap().unwrap();
    assert_eq!(names(&restored), ["b", "c", "e"]);
}

#[test]
fn a_damaged_file_is_never_applied() {
    let dir = tempfile::tempdir().unwrap();
    let written = LastGood::new(dir.path(), "ads");
    written.replaced(raw(vec![cluster("a")]), "v1");
    written.flush().unwrap();
    let path = dir.path().join("config/last-good");
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, damaged).unwrap();
        assert!(matches!(written.load(), Err(LastGoodError::Damaged { .. })), "byte {at}");
        fs::write(&path, &whole[..at]).unwrap();
        assert!(matches!(written.load(), Err(LastGoodError::Damaged { .. })), "cut at {at}");
    }
    fs::write(&path, &whole).unwrap();
    assert!(written.load().unwrap().is_some());
}

#[test]
fn a_newer_agents_file_is_told_by_its_version_and_kept_until_there_is_a_good_one() {
    let dir = tempfile::tempdir().unwrap();
    let written = LastGood::new(dir.path(), "ads");
    written.replaced(raw(vec![cluster("a")]), "v1");
    written.flush().unwrap();
    let path = dir.path().join("config/last-good");
    let body = fs::read(&path).unwrap().strip_prefix(b"mesh-last-good 1\n").unwrap().to_vec();
    let newer = [b"mesh-last-good 12\n".as_slice(), body.as_slice()].concat();
    fs::write(&path, &newer).unwrap();
    let older = LastGood::new(dir.path(), "ads");
    let error = older.load().unwrap_err();
    assert!(matches!(error, LastGoodError::OtherFormat { found: 12, .. }), "{error}");
    assert!(
        error.to_string().contains("is of format version 12, and this agent reads 1: it is kept"),
        "{error}"
    );
    older.flush().unwrap();
    assert_eq!(fs::read(&path).unwrap(), newer);
    older.replaced(raw(vec![cluster("b")]), "v2");
    older.flush().unwrap();
    assert_eq!(names(&older.load().unwrap().unwrap()), ["b"]);
    for header in ["mesh-last-good \n", "mesh-last-good +1\n", "mesh-last-good 99999999999\n"] {
        fs::write(&path, [header.as_bytes(), body.as_slice()].concat()).unwrap();
        assert!(matches!(older.load(), Err(LastGoodError::Damaged { .. })), "{header:?}");
    }
}

#[test]
fn another_sources_configuration_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let written = LastGood::new(dir.path(), "files in /a");
    written.replaced(raw(vec![cluster("a")]), "v1");
    written.flush().unwrap();
    let error = LastGood::new(dir.path(), "ads").load().unwrap_err().to_string();
    assert!(error.ends_with("is of files in /a, not of ads"), "{error}");
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let written = LastGood::new(dir.path(), "ads");
    let mut odd = cluster("a").1.unwrap().to_vec();
    // Field 1000, a varint: no Cluster has it.
    odd.extend([0xc0, 0x3e, 0x01]);
    written.replaced(raw(vec![(cluster("a").0, Some(odd.into()))]), "v1");
    written.flush().unwrap();
    let error = LastGood::new(dir.path(), "ads").load().unwrap_err().to_string();
    assert!(error.contains("clusters[a]") && error.contains("1000"), "{error}");
}

#[test]
fn a_virtual_host_comes_back_by_the_name_it_went_by() {
    let host = VirtualHost {
        name: "own".to_owned(),
        domains: vec!["x.test".to_owned()],
        ..VirtualHost::default()
    };
    let key = (ResourceType::VirtualHost, "r/x.test".into());
    let dir = tempfile::tempdir().unwrap();
    let written = LastGood::new(dir.path(), "ads");
    let raw = raw(vec![(key, Some(host.encode_to_vec().into()))]);
    written.replaced(raw, "v1");
    written.flush().unwrap();
    let restored = LastGood::new(dir.path(), "ads").load().unwrap().unwrap();
    let [(name, host)] = restored.resources.virtual_hosts.as_slice() else { panic!() };
    assert_eq!((&**name, &*host.name), ("r/x.test", "own"));
}

#[test]
fn a_time_that_is_none_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let written = LastGood::new(dir.path(), "ads");
    let body = Body { saved_at: u64::MAX, source: "ads".to_owned(), ..Body::default() };
    replace(&dir.path().join("config/last-good"), &body.encode_to_vec()).unwrap();
    assert!(matches!(written.load(), Err(LastGoodError::Damaged { .. })));
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_is_tried_again_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config/last-good");
    // A directory can't be replaced by a file.
    fs::create_dir_all(path.join("in the way")).unwrap();
    let last_good = Arc::new(LastGood::new(dir.path(), "ads"));
    let shutdown = CancellationToken::new();
    let writing = tokio::spawn(Arc::clone(&last_good).write(shutdown.clone()));
    last_good.replaced(raw(vec![cluster("a")]), "v1");
    time::sleep(TRY_AGAIN / 2).await;
    assert!(last_good.flush().is_err());
    assert!(!path.with_extension("tmp").exists());
    fs::remove_dir_all(&path).unwrap();
    time::sleep(TRY_AGAIN * 2).await;
    assert!(last_good.load().unwrap().is_some());
    shutdown.cancel();
    writing.await.unwrap();
}

#[test]
fn what_lies_where_the_file_is_written_is_neither_followed_nor_waited_for() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    let dir = tempfile::tempdir().unwrap();
    let written = LastGood::new(dir.path(), "ads");
    let temporary = dir.path().join("config").join("last-good.tmp");
    fs::create_dir_all(temporary.parent().unwrap()).unwrap();
    let other = dir.path().join("other");
    fs::write(&other, "somebody's").unwrap();

    symlink(&other, &temporary).unwrap();
    written.replaced(raw(vec![cluster("a")]), "v1");
    written.flush().unwrap();
    assert_eq!(fs::read_to_string(&other).unwrap(), "somebody's");

    // Opening it would wait for a reader.
    nix::unistd::mkfifo(&temporary, nix::sys::stat::Mode::S_IRWXU).unwrap();
    written.replaced(raw(vec![cluster("b")]), "v2");
    written.flush().unwrap();

    fs::write(&temporary, "of a crash, once readable").unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644)).unwrap();
    written.replaced(raw(vec![cluster("c")]), "v3");
    written.flush().unwrap();
    let file = dir.path().join("config").join("last-good");
    let metadata = fs::symlink_metadata(&file).unwrap();
    assert!(metadata.is_file());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let restored = LastGood::new(dir.path(), "ads").load().unwrap().unwrap();
    assert_eq!(names(&restored), ["c"]);

    // A directory is nobody's leftover: it is told, and what was there stays.
    fs::create_dir(&temporary).unwrap();
    written.replaced(raw(vec![cluster("d")]), "v4");
    assert!(written.flush().is_err());
    let restored = LastGood::new(dir.path(), "ads").load().unwrap().unwrap();
    assert_eq!(names(&restored), ["c"]);
}

//! The watcher against a real directory.

use std::{fs::OpenOptions, io::Write as _, os::unix::fs::symlink};

use tokio::task::JoinHandle;

use super::*;

struct Watched {
    directory: tempfile::TempDir,
    path: PathBuf,
    updates: mpsc::Receiver<Update>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Watched {
    /// Watches `conf` in a fresh directory, after `prepare` has filled it.
    fn start(prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("conf");
        fs::create_dir(&path).unwrap();
        prepare(&path);
        let (sender, updates) = mpsc::channel(4);
        let shutdown = CancellationToken::new();
        let source = FileSource::open(&path).unwrap();
        let task = tokio::spawn(source.watch(sender, shutdown.clone()));
        Self { directory, path, updates, shutdown, task }
    }

    async fn next(&mut self) -> Update {
        let update = time::timeout(Duration::from_secs(20), self.updates.recv()).await;
        update.expect("no update").expect("the source ended")
    }

    /// The names of the clusters in the next update, which must be a good one.
    async fn clusters(&mut self) -> Vec<String> {
        match self.next().await {
            Update::Resources(delivery) => {
                delivery.resources.clusters.iter().map(|c| c.name.to_string()).collect()
            }
            other @ (Update::Changes(_) | Update::Answered(_)) => panic!("{other:?}"),
            Update::Rejected(rejected) => panic!("rejected: {rejected:?}"),
        }
    }

    async fn rejection(&mut self) -> String {
        match self.next().await {
            Update::Resources(delivery) => panic!("accepted: {delivery:?}"),
            other @ (Update::Changes(_) | Update::Answered(_)) => panic!("{other:?}"),
            Update::Rejected(rejected) => rejected[0].to_string(),
        }
    }

    async fn silent(&mut self) {
        let update = time::timeout(STILL * 8, self.updates.recv()).await;
        assert!(update.is_err(), "unexpected: {update:?}");
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path.join(name), text).unwrap();
    }
}

fn cluster(name: &str) -> String {
    format!("\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\nname: {name}\n---\n")
}

#[tokio::test]
async fn in_place_writes_and_renames_are_seen_and_said_once() {
    let mut w = Watched::start(|dir| fs::write(dir.join("a.yaml"), cluster("a")).unwrap());
    assert_eq!(w.clusters().await, ["a"]);

    w.write("a.yaml", &cluster("b"));
    assert_eq!(w.clusters().await, ["b"]);

    w.write(".a.yaml.tmp", &cluster("c"));
    w.silent().await;
    fs::rename(w.path.join(".a.yaml.tmp"), w.path.join("a.yaml")).unwrap();
    assert_eq!(w.clusters().await, ["c"]);

    w.write("a.yaml", &cluster("c"));
    w.write("notes.txt", "not a resource");
    w.silent().await;

    w.write(
        "b.json",
        r#"{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "d"}"#,
    );
    assert_eq!(w.clusters().await, ["c", "d"]);
    fs::remove_file(w.path.join("b.json")).unwrap();
    assert_eq!(w.clusters().await, ["c"]);

    w.shutdown.cancel();
    w.task.await.unwrap();
}

#[tokio::test]
async fn a_broken_file_is_rejected_once_until_it_is_repaired() {
    let mut w = Watched::start(|dir| fs::write(dir.join("a.yaml"), cluster("a")).unwrap());
    assert_eq!(w.clusters().await, ["a"]);
    w.write("a.yaml", "name: [\n");
    let rejection = w.rejection().await;
    assert!(rejection.starts_with("a.yaml:2:1: "), "{rejection}");
    w.write("a.yaml", "name: [\n");
    w.silent().await;
    w.write("a.yaml", &cluster("a"));
    assert_eq!(w.clusters().await, ["a"]);
}

#[tokio::test]
async fn half_a_file_that_is_valid_yaml_is_not_applied() {
    let mut w = Watched::start(|dir| fs::write(dir.join("a.yaml"), cluster("a")).unwrap());
    assert_eq!(w.clusters().await, ["a"]);
    let path = w.path.join("a.yaml");
    let mut file = OpenOptions::new().write(true).truncate(true).open(path).unwrap();
    file.write_all(cluster("b").as_bytes()).unwrap();
    // The file could be read as cluster b alone for as long as this takes.
    w.silent().await;
    file.write_all(cluster("c").as_bytes()).unwrap();
    drop(file);
    assert_eq!(w.clusters().await, ["b", "c"]);
}

#[tokio::test]
async fn a_directory_that_vanishes_is_rejected_and_found_again() {
    let mut w = Watched::start(|dir| fs::write(dir.join("a.yaml"), cluster("a")).unwrap());
    assert_eq!(w.clusters().await, ["a"]);
    let aside = w.directory.path().join("aside");
    fs::rename(&w.path, &aside).unwrap();
    let rejection = w.rejection().await;
    assert!(rejection.starts_with(&w.path.display().to_string()), "{rejection}");
    fs::create_dir(&w.path).unwrap();
    w.write("a.yaml", &cluster("b"));
    assert_eq!(w.clusters().await, ["b"]);
    w.write("a.yaml", &cluster("c"));
    assert_eq!(w.clusters().await, ["c"]);
}

#[tokio::test]
async fn a_config_map_is_swapped_as_one() {
    let generation = |dir: &Path, name: &str, clusters: [&str; 2]| {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("a.yaml"), cluster(clusters[0])).unwrap();
        fs::write(dir.join(name).join("b.yaml"), cluster(clusters[1])).unwrap();
    };
    let mut w = Watched::start(|dir| {
        generation(dir, "..one", ["a", "b"]);
        symlink("..one", dir.join("..data")).unwrap();
        symlink("..data/a.yaml", dir.join("a.yaml")).unwrap();
        symlink("..data/b.yaml", dir.join("b.yaml")).unwrap();
    });
    assert_eq!(w.clusters().await, ["a", "b"]);
    generation(&w.path, "..two", ["c", "d"]);
    symlink("..two", w.path.join("..data_tmp")).unwrap();
    fs::rename(w.path.join("..data_tmp"), w.path.join("..data")).unwrap();
    assert_eq!(w.clusters().await, ["c", "d"]);
    fs::remove_dir_all(w.path.join("..one")).unwrap();
    w.silent().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_watch_changes_are_seen_by_polling() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), cluster("a")).unwrap();
    let mut watching = Watching::start(directory.path());
    watching.forget();
    watching.watcher = None;
    let before = watching.settled().await;
    fs::write(directory.path().join("a.yaml"), cluster("b")).unwrap();
    time::timeout(POLL * 2, watching.changed()).await.unwrap();
    assert_ne!(watching.settled().await, before);
}

#[test]
fn a_missing_directory_is_named() {
    let error = FileSource::open("/nonexistent/mesh").unwrap_err().to_string();
    assert!(
        error.starts_with("configuration directory /nonexistent/mesh can't be read"),
        "{error}"
    );
}

//! The watched folder, with real files; every step waits for the view that it expects.

use std::fs;
use std::io::Write as _;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;

use super::super::start;
use super::*;
use crate::key::ObjectKey;

const LONG: Duration = Duration::from_secs(20);

/// A folder within a folder of its own, so that it can vanish.
struct WatchedFolder {
    _root: TempDir,
    dir: PathBuf,
}

impl WatchedFolder {
    fn new() -> Self {
        let root = TempDir::new().unwrap();
        let dir = root.path().join("manifests");
        fs::create_dir(&dir).unwrap();
        Self { _root: root, dir }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }

    /// As careful tools do it.
    fn replace(&self, name: &str, text: &str) {
        let temporary = self.dir.join(".new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.dir.join(name)).unwrap();
    }

    async fn start(&self) -> Source {
        let service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
        let options = ManifestsOptions { dir: self.dir.clone(), service_cidrs, ..ManifestsOptions::default() };
        start(options).await.unwrap()
    }
}

fn service(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n")
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.services.keys().map(|key| key.name.to_string()).collect()
}

#[track_caller]
fn services(source: &mut Source, expected: &[&str]) -> impl Future<Output = ()> {
    let expected: Vec<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    async move {
        let found = timeout(LONG, source.snapshots.wait_for(|snapshot| names(snapshot) == expected)).await;
        let found = found.map(|known| known.is_ok());
        assert!(found == Ok(true), "still {:?} instead of {expected:?}", names(&source.snapshots.borrow()));
    }
}

async fn health(source: &mut Source, wanted: impl FnMut(&SourceHealth) -> bool) -> SourceHealth {
    let found = timeout(LONG, source.health.wait_for(wanted)).await.map(|health| health.unwrap().clone());
    assert!(found.is_ok(), "still {:?}", source.health.borrow());
    found.unwrap()
}

#[tokio::test]
async fn files_come_change_and_go() {
    let folder = WatchedFolder::new();
    folder.write("a.yaml", &service("a"));
    let mut source = folder.start().await;
    services(&mut source, &["a"]).await;
    folder.write("b.yml", &service("b"));
    services(&mut source, &["a", "b"]).await;
    folder.replace("a.yaml", &service("c"));
    services(&mut source, &["b", "c"]).await;
    fs::rename(folder.dir.join("b.yml"), folder.dir.join("b.txt")).unwrap();
    services(&mut source, &["c"]).await;
    folder.write(".hidden.yaml", &service("hidden"));
    folder.write(
        "d.json",
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"d"},"spec":{"ports":[{"port":1}]}}"#,
    );
    services(&mut source, &["c", "d"]).await;
    fs::remove_file(folder.dir.join("a.yaml")).unwrap();
    services(&mut source, &["d"]).await;
    fs::remove_file(folder.dir.join("d.json")).unwrap();
    services(&mut source, &[]).await;
    folder.write("a.yaml", &service("a"));
    services(&mut source, &["a"]).await;
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_version_until_repaired() {
    let folder = WatchedFolder::new();
    folder.write("a.yaml", &service("a"));
    folder.write("never.yaml", "a: [\n");
    let mut source = folder.start().await;
    assert!(source.health.borrow().problems[0].reason.contains("nothing of this file is in force"));
    folder.replace("a.yaml", &service("a").replace("ports:", "ports: {"));
    let found = health(&mut source, |health| health.problems.len() == 2).await;
    assert_eq!((found.problems[0].kind, found.problems[0].line), ("file", Some(4)));
    assert!(found.problems[0].reason.ends_with("the last good version of this file stays in force"));
    assert_eq!(found.counts["file"], 2);
    services(&mut source, &["a"]).await;
    folder.write("b.yaml", &service("b"));
    services(&mut source, &["a", "b"]).await;
    folder.replace("a.yaml", &service("z"));
    services(&mut source, &["b", "z"]).await;
    folder.replace("never.yaml", "");
    let repaired = health(&mut source, |health| health.problems.is_empty()).await;
    assert_eq!(repaired.counts["file"], 2);
}

#[tokio::test]
async fn a_file_that_is_being_written_never_loses_its_last_good_version() {
    let folder = WatchedFolder::new();
    folder.write("a.yaml", &format!("{}---\n{}", service("a"), service("b")));
    let mut source = folder.start().await;
    let untouched = |source: &Source| !source.snapshots.has_changed().unwrap();
    let mut file = fs::File::create(folder.dir.join("a.yaml")).unwrap();
    let mut last = String::new();
    for (written, wanted) in [
        ("", "it is still open for writing, and there is no object in it yet"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: c}\nspec: {ports: [", "it is still open for writing, and "),
        ("{port: 8x}]}\n", "it is still open for writing, and Service default/c: invalid i32"),
        ("---\n{", "it is still open for writing, and "),
    ] {
        file.write_all(written.as_bytes()).unwrap();
        let found = health(&mut source, |health| health.problems.iter().any(|problem| problem.reason != last)).await;
        let [problem] = &found.problems[..] else { panic!("one problem: {found:?}") };
        assert!(problem.reason.starts_with(wanted), "{problem}");
        assert!(problem.reason.ends_with("; the last good version of this file stays in force"), "{problem}");
        assert!(untouched(&source), "{:?}", names(&source.snapshots.borrow()));
        last = problem.reason.clone();
    }
    drop(file);
    let closed = health(&mut source, |health| !health.problems[0].reason.contains("open for writing")).await;
    assert!(closed.problems[0].reason.ends_with("; the last good version of this file stays in force"));
    assert!(untouched(&source));
    // Closed, it means what it says.
    folder.write("a.yaml", &service("c"));
    services(&mut source, &["c"]).await;
    folder.write("a.yaml", "");
    services(&mut source, &[]).await;
}

#[tokio::test]
async fn an_object_of_no_use_in_a_file_that_is_being_written_takes_nothing_out_of_force() {
    let folder = WatchedFolder::new();
    folder.write("a.yaml", &service("a"));
    let mut source = folder.start().await;
    let mut file = fs::File::create(folder.dir.join("a.yaml")).unwrap();
    file.write_all(b"apiVersion: v1\nkind: Service\nmetadata:\n  name: a\nspec:\n  ports:").unwrap();
    let found = health(&mut source, |health| health.problems.len() == 1).await;
    assert!(found.problems[0].reason.contains("Service default/a: it has no ports"), "{:?}", found.problems);
    assert!(!source.snapshots.has_changed().unwrap());
}

#[tokio::test]
async fn a_file_that_is_never_closed_is_taken_when_it_is_whole() {
    let folder = WatchedFolder::new();
    folder.write("a.yaml", &service("a"));
    let mut source = folder.start().await;
    let mut file = fs::File::create(folder.dir.join("a.yaml")).unwrap();
    file.write_all(service("b").as_bytes()).unwrap();
    services(&mut source, &["b"]).await;
    file.write_all(format!("---\n{}", service("c")).as_bytes()).unwrap();
    services(&mut source, &["b", "c"]).await;
    assert_eq!(source.health.borrow().problems, []);
    drop(file);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_view_lacks_what_a_file_has_before_and_after_it_is_rewritten_in_place() {
    let folder = WatchedFolder::new();
    let text = |other: usize| format!("{}---\n{}", service("a"), service(&format!("b{other}")));
    folder.write("a.yaml", &text(0));
    let mut source = folder.start().await;
    let mut views = source.snapshots.clone();
    let watching = tokio::spawn(async move {
        while views.changed().await.is_ok() {
            let names = names(&views.borrow_and_update());
            assert!(names.contains(&"a".to_owned()), "{names:?}");
        }
    });
    const TIMES: usize = 2000;
    let dir = folder.dir.clone();
    let writing = move || (1..=TIMES).for_each(|n| fs::write(dir.join("a.yaml"), text(n)).unwrap());
    tokio::task::spawn_blocking(writing).await.unwrap();
    services(&mut source, &["a", &format!("b{TIMES}")]).await;
    drop(source);
    watching.await.unwrap();
}

/// What the thread would have, without the thread.
fn reader<'a>(folder: &WatchedFolder, outbox: &'a Sender<Signal>) -> Reader<'a> {
    Reader::first(&ManifestsOptions { dir: folder.dir.clone(), ..ManifestsOptions::default() }, outbox).unwrap()
}

#[test]
fn each_write_starts_the_wait_anew_and_no_other_look_comes_before() {
    let folder = WatchedFolder::new();
    folder.write("a.yaml", &service("a"));
    let (outbox, _inbox) = channel();
    let mut reader = reader(&folder, &outbox);
    let (name, mut batch): (Arc<str>, Batch) = (Arc::from("a.yaml"), Batch::default());
    let look = |reader: &Reader<'_>| reader.unclosed.get(&name).and_then(|unclosed| unclosed.look);
    let file = fs::File::create(folder.dir.join("a.yaml")).unwrap();
    assert!(reader.note(Signal::Opened(name.clone()), &mut batch));
    let first = look(&reader).unwrap();
    assert!(reader.note(Signal::Opened(name.clone()), &mut batch));
    assert!(look(&reader).unwrap() > first);
    for signal in [Signal::Touched(name.clone()), Signal::Folder, Signal::Missed] {
        assert!(reader.note(signal, &mut batch));
        assert!(reader.read(&batch).unwrap().is_empty());
        assert_eq!(names(&reader.folder.assembly.settle()), ["a"]);
    }
    drop(file);
    assert!(reader.note(Signal::Written(name.clone()), &mut batch));
    assert_eq!(batch.files.keys().collect::<Vec<_>>(), [&name]);
    // Before it could be read it is opened again.
    assert!(reader.note(Signal::Opened(name.clone()), &mut batch));
    assert!(batch.files.is_empty());
}

#[test]
fn a_closed_file_is_doubted_until_it_is_certain_that_it_was_not_opened_again() {
    let folder = WatchedFolder::new();
    folder.write("a.yaml", &service("a"));
    let (outbox, inbox) = channel();
    let mut reader = reader(&folder, &outbox);
    let name: Arc<str> = Arc::from("a.yaml");
    let read = |reader: &mut Reader<'_>| {
        let batch = Batch { files: BTreeMap::from([(name.clone(), Visit::Always)]), rescan: false };
        let doubtful = reader.read(&batch).unwrap();
        reader.doubt(doubtful, &inbox);
        names(&reader.folder.assembly.settle())
    };
    reader.watched = None; // its events would decide before the test does
    while inbox.recv_timeout(DOUBT).is_ok() {}
    fs::write(folder.dir.join("a.yaml"), "").unwrap();
    outbox.send(Signal::Opened(name.clone())).unwrap();
    assert_eq!(read(&mut reader), ["a"]);
    assert_eq!(reader.waiting.pop_front(), Some(Signal::Opened(name.clone())), "it is not lost");
    assert_eq!(read(&mut reader), Vec::<String>::new());
}

#[tokio::test]
async fn a_vanished_folder_leaves_the_last_view_and_is_picked_up_again() {
    let folder = WatchedFolder::new();
    folder.write("a.yaml", &service("a"));
    folder.write("b.yaml", &service("b"));
    let mut source = folder.start().await;
    fs::remove_dir_all(&folder.dir).unwrap();
    let lost = health(&mut source, |health| health.unreachable.is_some()).await;
    assert!(lost.unreachable.unwrap().contains("the last good view stays in force"));
    services(&mut source, &["a", "b"]).await;
    assert!(!source.snapshots.has_changed().unwrap(), "no view without the files came between");

    fs::create_dir(&folder.dir).unwrap();
    folder.write("a.yaml", &service("a"));
    folder.write("c.yaml", &service("c"));
    services(&mut source, &["a", "c"]).await;
    health(&mut source, |health| health.unreachable.is_none()).await;
    // The new folder is watched like the old one.
    folder.write("d.yaml", &service("d"));
    services(&mut source, &["a", "c", "d"]).await;
}

#[tokio::test]
async fn a_folder_exchanged_by_rename_is_followed() {
    let folder = WatchedFolder::new();
    folder.write("a.yaml", &service("a"));
    let mut source = folder.start().await;
    let other = folder.dir.with_file_name("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("b.yaml"), service("b")).unwrap();
    fs::rename(&folder.dir, folder.dir.with_file_name("old")).unwrap();
    fs::rename(&other, &folder.dir).unwrap();
    services(&mut source, &["b"]).await;
    folder.write("c.yaml", &service("c"));
    services(&mut source, &["b", "c"]).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_followed() {
    let folder = WatchedFolder::new();
    for version in ["..1", "..2"] {
        fs::create_dir(folder.dir.join(version)).unwrap();
        fs::write(folder.dir.join(version).join("a.yaml"), service(&version.replace("..", "v"))).unwrap();
    }
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, folder.dir.join(at)).unwrap();
    link("..1", "..data");
    link("..data/a.yaml", "a.yaml");
    let mut source = folder.start().await;
    services(&mut source, &["v1"]).await;
    link("..2", "..tmp");
    fs::rename(folder.dir.join("..tmp"), folder.dir.join("..data")).unwrap();
    services(&mut source, &["v2"]).await;
}

#[tokio::test]
async fn what_did_not_change_stays_the_same_allocation() {
    let folder = WatchedFolder::new();
    folder.write("a.yaml", &format!("{}---\n{}", service("a"), service("b")));
    let mut source = folder.start().await;
    let of = |source: &Source, name: &str| source.snapshots.borrow().services[&ObjectKey::new("default", name)].clone();
    let before = of(&source, "a");
    folder.replace("a.yaml", &format!("# moved by a line\n{}---\n{}", service("a"), service("c")));
    services(&mut source, &["a", "c"]).await;
    assert!(Arc::ptr_eq(&before, &of(&source, "a")));
}

#[tokio::test]
async fn an_empty_folder_is_a_view_and_a_missing_one_an_error() {
    let folder = WatchedFolder::new();
    let source = folder.start().await;
    assert_eq!(**source.snapshots.borrow(), Snapshot::default());
    let dir = folder.dir.join("missing");
    let error = start(ManifestsOptions { dir: dir.clone(), ..ManifestsOptions::default() }).await.err().unwrap();
    assert!(error.to_string().contains(&dir.display().to_string()), "{error}");
}

#[tokio::test]
async fn dropping_the_source_ends_the_thread_and_keeps_the_view() {
    let folder = WatchedFolder::new();
    folder.write("a.yaml", &service("a"));
    let Source { mut snapshots, _stop, .. } = folder.start().await;
    drop(_stop);
    assert!(timeout(LONG, snapshots.changed()).await.unwrap().is_err());
    assert_eq!(names(&snapshots.borrow()), ["a"]);
}

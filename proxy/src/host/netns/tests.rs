//! With namespaces made for the test, on threads of its own; these need root.

use std::os::unix::fs::symlink;
use std::sync::mpsc::{Sender, channel};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::unshare;
use nix::unistd::{Uid, gettid};

use super::*;
use crate::host::netlink::addresses::InterfaceAddress;

/// Whether a test may go on that changes namespaces.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
pub(crate) fn is_root(test: &str) -> bool {
    let root = Uid::effective().is_root();
    if !root {
        eprintln!("SKIPPED {test}: network namespaces need root");
    }
    root
}

/// A namespace held by a thread, which appears as process 7 in a `proc` of the test's.
struct Made {
    proc: tempfile::TempDir,
    link: PathBuf,
    cookie: u64,
    orders: Option<Sender<Order>>,
    thread: Option<thread::JoinHandle<()>>,
}

type Order = Box<dyn FnOnce() + Send>;

impl Made {
    fn new() -> Self {
        let (orders, inbox) = channel::<Order>();
        let (ready, made) = channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let link = format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid());
            ready.send((link, netns_cookie().unwrap())).unwrap();
            inbox.iter().for_each(|order| order());
        });
        let (link, cookie) = made.recv().unwrap();
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir_all(proc.path().join("7/ns")).unwrap();
        symlink(&link, proc.path().join("7/ns/net")).unwrap();
        Self { proc, link: PathBuf::from(link), cookie, orders: Some(orders), thread: Some(thread) }
    }

    /// Runs `ip` inside.
    fn ip(&self, arguments: &'static str) {
        let (done, wait) = channel();
        let order = move || {
            let status = std::process::Command::new("ip").args(arguments.split(' ')).status();
            done.send(status.unwrap().success()).unwrap();
        };
        self.orders.as_ref().unwrap().send(Box::new(order)).unwrap();
        assert!(wait.recv().unwrap(), "ip {arguments}");
    }

    fn end(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.end();
    }
}

fn addresses_of(inventory: &Inventory, cookie: u64) -> Option<String> {
    let found = inventory.namespaces.iter().find(|namespace| namespace.cookie == cookie)?;
    Some(found.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
}

#[test]
fn addresses_are_ordered_by_interface_with_secondary_ones_last() {
    #[track_caller]
    fn check(listed: &str, wanted: &str) {
        let parse = |text: &str| {
            let (interface, rest) = text.split_once(':').unwrap();
            let (address, mark) = rest.split_once('/').unwrap_or((rest, ""));
            InterfaceAddress {
                address: address.parse::<IpAddr>().unwrap().to_canonical(),
                interface: interface.parse().unwrap(),
                secondary: mark == "secondary",
                tentative: false,
                prefix: 24,
                deprecated: false,
            }
        };
        let found = addresses::reachable(listed.split_whitespace().map(parse).collect());
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.join(" "), wanted);
    }
    check("1:127.0.0.1 3:10.0.0.3 2:10.0.0.2 1:::1 2:fd00::2 2:fe80::2", "10.0.0.2 fd00::2 10.0.0.3");
    check("2:10.0.0.9/secondary 2:10.0.0.2 3:10.0.1.1", "10.0.0.2 10.0.1.1 10.0.0.9");
    check("1:169.254.20.10 1:10.96.0.10 2:::ffff:10.0.0.5", "10.96.0.10 10.0.0.5");
    check("", "");
}

#[test]
fn a_namespace_is_found_through_its_process_and_work_is_done_inside() {
    if !is_root("a_namespace_is_found_through_its_process_and_work_is_done_inside") {
        return;
    }
    let made = Made::new();
    made.ip("address add 10.1.2.3/32 dev lo");
    made.ip("address add fd00::3/128 dev lo nodad");
    let inventory = inventory(made.proc.path(), &[PathBuf::from("/does/not/exist")]).unwrap();
    assert_eq!((inventory.namespaces.len(), inventory.unreadable), (2, 0), "the own one and the new one");
    assert_eq!(addresses_of(&inventory, made.cookie).unwrap(), "10.1.2.3 fd00::3");
    let own = inventory.namespaces.iter().find(|namespace| namespace.own).unwrap();
    assert_eq!(own.cookie, netns_cookie().unwrap());
    let other = inventory.namespaces.iter().find(|namespace| !namespace.own).unwrap();
    assert_eq!(other.process, Some(7));
    assert_eq!(within(other, netns_cookie).unwrap().unwrap(), made.cookie);
    let cookies = within_each(&inventory.namespaces, |_| netns_cookie().unwrap()).unwrap();
    let cookies: Vec<u64> = cookies.into_iter().map(Result::unwrap).collect();
    assert_eq!(cookies, inventory.namespaces.iter().map(|namespace| namespace.cookie).collect::<Vec<_>>());
    assert_eq!(netns_cookie().unwrap(), own.cookie, "the calling thread stays where it was");
}

#[test]
fn addresses_are_read_again_while_there_are_none_and_when_they_are_old() {
    if !is_root("addresses_are_read_again_while_there_are_none_and_when_they_are_old") {
        return;
    }
    let made = Made::new();
    let mut scanner = Scanner::new(made.proc.path(), &[]);
    let start = Instant::now();
    let mut addresses = |at: Duration| addresses_of(&scanner.scan_at(start + at).unwrap(), made.cookie).unwrap();
    assert_eq!(addresses(Duration::ZERO), "");
    made.ip("address add 10.1.2.3/32 dev lo");
    assert_eq!(addresses(Duration::ZERO), "10.1.2.3");
    made.ip("address add 10.1.2.4/32 dev lo");
    assert_eq!(addresses(Duration::from_secs(29)), "10.1.2.3");
    assert_eq!(addresses(Duration::from_secs(30)), "10.1.2.3 10.1.2.4");
}

#[test]
fn a_namespace_that_vanished_is_not_taken_for_its_successor() {
    if !is_root("a_namespace_that_vanished_is_not_taken_for_its_successor") {
        return;
    }
    let mut made = Made::new();
    made.ip("address add 10.1.2.3/32 dev lo");
    let mut scanner = Scanner::new(made.proc.path(), &[]);
    let before = scanner.scan().unwrap();
    let old = before.namespaces.iter().find(|namespace| namespace.cookie == made.cookie).unwrap();
    made.end();
    assert!(is_gone(&within(old, || ()).unwrap_err()));
    let after = scanner.scan().unwrap();
    assert_eq!((after.namespaces.len(), after.unreadable), (1, 0), "gone is no failure");
    // The same path, usually the same inode number, but another namespace.
    let next = Made::new();
    let link = made.proc.path().join("7/ns/net");
    fs::remove_file(&link).unwrap();
    symlink(&next.link, link).unwrap();
    assert!(is_gone(&within(old, || ()).unwrap_err()));
    let after = scanner.scan().unwrap();
    assert_eq!((addresses_of(&after, made.cookie), addresses_of(&after, next.cookie)), (None, Some(String::new())));
}

#[test]
fn a_namespace_without_a_process_is_found_under_its_name_once() {
    if !is_root("a_namespace_without_a_process_is_found_under_its_name_once") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let named = directory.path().join("pod");
    fs::write(&named, "").unwrap();
    fs::write(directory.path().join("left-behind"), "").unwrap();
    let mut made = Made::new();
    mount(Some(&made.link), &named, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    made.end();
    let again = directory.path().join(".");
    let inventory = inventory(made.proc.path(), &[directory.path().to_owned(), again]).unwrap();
    let found: Vec<_> = inventory.namespaces.iter().filter(|namespace| !namespace.own).collect();
    assert_eq!((found.len(), found[0].cookie, found[0].process), (1, made.cookie, None));
    assert_eq!(within(found[0], netns_cookie).unwrap().unwrap(), made.cookie);
    assert_eq!(inventory.unreadable, 0);
    umount2(&named, MntFlags::MNT_DETACH).unwrap();
    assert!(is_gone(&within(found[0], || ()).unwrap_err()));
}

#[test]
fn what_cannot_be_read_is_counted() {
    let proc = tempfile::tempdir().unwrap();
    fs::create_dir_all(proc.path().join("8/ns")).unwrap();
    symlink("net", proc.path().join("8/ns/net")).unwrap();
    fs::create_dir_all(proc.path().join("9")).unwrap();
    fs::create_dir_all(proc.path().join("irq")).unwrap();
    let inventory = inventory(proc.path(), &[]).unwrap();
    assert_eq!((inventory.namespaces.len(), inventory.unreadable), (1, 1), "8 is a loop of links, 9 has ended");
    assert!(super::inventory(&proc.path().join("absent"), &[]).is_err());
}

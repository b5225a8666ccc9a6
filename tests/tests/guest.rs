//! Guests: what runs in them comes back whole, and one that does not end by itself is an error that says where it was.
#![expect(clippy::tests_outside_test_module, reason = "the whole file is tests")]

mod guests;

use std::fs;
use std::time::Duration;

use guests::kernel;
use lab::Lab;
use lab::guest::{Guest, inside};
use lab::peer::Mode;

/// The kernels, and how their releases begin.
const KERNELS: [(&str, &str); 2] = [("debian-6.1", "6.1."), ("debian-6.12", "6.12.")];

#[test]
fn output_and_exit_status_come_back() {
    for (name, _) in KERNELS {
        let Some(kernel) = kernel(name) else { return };
        let output = Guest::new(kernel).unwrap().run("echo one; echo two >&2; exit 7", |_| {}).unwrap();
        assert_eq!((output.status, output.lines), (7, vec!["one".to_owned(), "two".to_owned()]), "{name}");
    }
}

#[test]
fn a_kernel_that_panics_is_an_error_with_the_end_of_its_console() {
    let Some(kernel) = kernel("debian-6.1") else { return };
    let guest = Guest::new(kernel).unwrap();
    let error = guest.run("echo so far; echo c > /proc/sysrq-trigger", |_| {}).unwrap_err();
    let error = format!("{error:#}");
    for wanted in
        ["debian-6.1", "so far", "ended before its script", "Kernel panic - not syncing: sysrq triggered crash"]
    {
        assert!(error.contains(wanted), "{wanted} is not in: {error}");
    }
}

#[test]
fn a_guest_that_is_not_done_in_time_is_an_error() {
    let Some(kernel) = kernel("debian-6.1") else { return };
    // No kernel boots in no time, so no line of the script comes before.
    let guest = Guest::new(kernel).unwrap().limit(Duration::ZERO);
    let error = format!("{:#}", guest.run("while :; do read -r _ < /proc/uptime; done", |_| {}).unwrap_err());
    assert!(error.contains("debian-6.1") && error.contains("not done within its time"), "{error}");
}

#[test]
fn a_test_of_the_lab_runs_in_a_guest() {
    let Some(name) = inside() else {
        for (name, _) in KERNELS {
            let Some(kernel) = kernel(name) else { return };
            guests::run_test(kernel, "a_test_of_the_lab_runs_in_a_guest").unwrap();
        }
        return;
    };
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(KERNELS.iter().any(|(kernel, begins)| *kernel == name && release.starts_with(begins)), "{name}: {release}");
    let lab = Lab::new("inside").unwrap();
    let pod = lab.node("n1").unwrap().pod("pod").unwrap();
    let _server = pod.serve("pod", &["--tcp", "7000"]).unwrap();
    let attempts = lab.outside.connect((pod.ipv4, 7000).into(), Mode::Tcp, 1).unwrap();
    assert_eq!(attempts[0].server.as_deref(), Some("pod"));
}

#[test]
fn a_test_that_fails_in_a_guest_fails_here() {
    if inside().is_some() {
        panic!("as it should");
    }
    let Some(kernel) = kernel("debian-6.1") else { return };
    let error = guests::run_test(kernel, "a_test_that_fails_in_a_guest_fails_here").unwrap_err();
    assert!(format!("{error:#}").contains("as it should"), "{error:#}");
}

//! Which data path is chosen, for offers in rows.

use super::*;

/// An offer with these checks: a name with `!` is missing, one with `?` a note.
fn offer(checks: &str) -> Offer {
    let check = |text: &'static str| {
        let (name, state) = match text.strip_suffix('!') {
            Some(name) => (name, CheckState::Missing),
            None => text.strip_suffix('?').map_or((text, CheckState::Ok), |name| (name, CheckState::Note)),
        };
        Check { name, state, detail: "as seen".to_owned() }
    };
    let checks = checks.to_owned().leak().split_whitespace().map(check).collect();
    Offer { mode: Mode::Ebpf, checks }
}

#[track_caller]
fn check(requested: Requested, offers: &[&str], wanted: Result<Mode, &str>) {
    let offers: Vec<Offer> = offers.iter().map(|checks| offer(checks)).collect();
    let chosen = choose(requested, &offers).map_err(|error| error.to_string());
    match wanted {
        Ok(mode) => assert_eq!(chosen, Ok(mode), "{offers:?}"),
        Err(reason) => assert_eq!(chosen, Err(format!("{reason}; shunt check lists what this host offers"))),
    }
}

#[test]
fn auto_takes_the_first_that_is_possible() {
    check(Requested::Auto, &["btf"], Ok(Mode::Ebpf));
    check(Requested::Auto, &["btf kernel?"], Ok(Mode::Ebpf));
    check(Requested::Auto, &["btf!", "btf"], Ok(Mode::Ebpf));
}

#[test]
fn a_mode_asked_for_by_name_is_taken_or_is_an_error_with_what_it_lacks() {
    let only = Requested::Only(Mode::Ebpf);
    check(only, &["btf"], Ok(Mode::Ebpf));
    let reason = "the data path asked for cannot work here: ebpf (maps: as seen; cgroup: as seen)";
    check(only, &["btf maps! kernel? cgroup!"], Err(reason));
    check(only, &[], Err("the data path asked for cannot work here: ebpf"));
}

#[test]
fn nothing_possible_is_an_error_that_names_what_is_missing() {
    check(Requested::Auto, &["btf!"], Err("no data path can work here: ebpf (btf: as seen)"));
    let reason = "no data path can work here: ebpf (btf: as seen), ebpf (cgroup: as seen)";
    check(Requested::Auto, &["btf! maps", "cgroup!"], Err(reason));
}

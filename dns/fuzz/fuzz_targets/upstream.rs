//! Any octets as an upstream's reply: clients see a well-formed reply to their own question, and no other's records.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use passed_on::Setting;

// The reader and the checks of the tests, which know nothing of the server's.
#[path = "../../tests/dns/kinds/belongs.rs"]
mod belongs;
#[path = "../../tests/dns/kinds/passed_on.rs"]
mod passed_on;
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/dns/kinds/raw.rs"]
mod raw;
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../../tests/dns/kinds/types.rs"]
mod types;

static SETTING: LazyLock<Setting> = LazyLock::new(Setting::new);

fuzz_target!(|wire: &[u8]| {
    if let Err(why) = SETTING.check(wire) {
        panic!("{why}");
    }
});

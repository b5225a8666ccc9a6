//! Changes and faults at random for a while; at the end the view is that of a source that starts afresh.

use std::time::{Duration, Instant};

use lab::api::{FakeApi, Resource};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::watched::{Watched, service, services, slice};

/// Long enough to meet every kind of fault; `SHUNT_SOAK_SECONDS` makes it longer.
const SECONDS: u64 = 8;

fn seconds() -> Duration {
    let given = std::env::var("SHUNT_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(given.unwrap_or(SECONDS))
}

fn step(api: &FakeApi, dice: &mut StdRng) {
    let number = dice.random_range(0..40);
    let name = format!("s{number}");
    match dice.random_range(0..20) {
        0..8 => {
            let address = format!("10.1.{}.{}", dice.random_range(0..4), dice.random_range(1..250));
            api.apply_object(slice(&name, &[&address])).unwrap();
        }
        8..13 => api.apply_object(service(&name, number + 10)).unwrap(),
        13..15 => drop(api.delete(Resource::Service, "default", &name)),
        15..17 => drop(api.delete(Resource::EndpointSlice, "default", &format!("{name}-x"))),
        17 => api.drop_watches(),
        18 => api.compact(),
        _ => api.bookmark(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_changes_and_faults_end_in_the_view_of_a_fresh_start() {
    let seed = std::env::var("SHUNT_SOAK_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_124);
    let mut dice = StdRng::seed_from_u64(seed);
    let api = FakeApi::start().unwrap();
    // The one that must be there in every view.
    api.apply_object(service("always", 1)).unwrap();
    let watched = Watched::new(&api).await;
    api.faults().random(seed, 250);
    let end = Instant::now() + seconds();
    let mut steps = 0_u64;
    while Instant::now() < end {
        step(&api, &mut dice);
        steps += 1;
        tokio::time::sleep(Duration::from_millis(dice.random_range(0..6))).await;
        if dice.random_ratio(1, 2_000) {
            api.stop_listening();
            tokio::time::sleep(Duration::from_millis(300)).await;
            api.resume().unwrap();
        }
    }
    let fired = api.faults().fired();
    api.faults().clear();
    let fresh = Watched::new(&api).await;
    let expected = services(&fresh.snapshot());
    watched.until_services(&expected).await;
    assert_eq!(watched.snapshot().slices, fresh.snapshot().slices);
    assert_eq!(watched.snapshot().services, fresh.snapshot().services);
    assert!(!watched.lost().contains("always"), "{:?}", watched.lost());
    assert!(fired > 10, "only {fired} faults in {steps} steps");
    eprintln!("seed {seed}: {steps} steps, {fired} faults");
}

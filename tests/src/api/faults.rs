//! What goes wrong on purpose.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::Resource;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// One page of a list.
    List,
    /// A watch.
    Watch,
    /// A single object.
    Get,
    /// A new object.
    Create,
}

/// Which requests a fault is for; nothing given means all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Match {
    /// The resource.
    pub resource: Option<Resource>,
    /// The verb.
    pub verb: Option<Verb>,
}

/// How a request goes wrong.
#[derive(Clone, Debug)]
pub enum Action {
    /// An error with this code and reason; seconds to wait if not 0.
    Status {
        /// HTTP code.
        code: u16,
        /// As in `reason:` of a Status.
        reason: &'static str,
        /// Seconds in Retry-After.
        retry_after: u32,
    },
    /// 200 with this body.
    Garbage(&'static str),
    /// The connection breaks after so many bytes of the body.
    Truncate(usize),
    /// A watch ends properly after so many events.
    CloseAfter(usize),
    /// The request is taken and never answered.
    Stall,
    /// The body comes in tiny pieces.
    Slow {
        /// Bytes in a piece.
        bytes: usize,
        /// Between two.
        delay: Duration,
    },
    /// A watch says at its first event that its version is too old.
    GoneInStream,
    /// A watch says at its first event that something is wrong.
    ErrorInStream(u16),
    /// A watch sends each event twice.
    Duplicate,
    /// A list is of an earlier state, as far as history goes.
    StaleList,
    /// The connection breaks without an answer.
    Reset,
}

/// One fault.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which requests.
    pub on: Match,
    /// How many of them; none for all until [`Faults::clear`].
    pub times: Option<u32>,
    /// What happens.
    pub action: Action,
}

/// The faults in force.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    scripted: Vec<Fault>,
    random: Option<(StdRng, u32)>,
    fired: usize,
}

impl Faults {
    /// Puts one in force.
    pub fn add(&self, fault: Fault) {
        self.state().scripted.push(fault);
    }

    /// `times` requests of `resource` and `verb` go wrong.
    pub fn script(&self, resource: Resource, verb: Verb, times: u32, action: Action) {
        let on = Match { resource: Some(resource), verb: Some(verb) };
        self.add(Fault { on, times: Some(times), action });
    }

    /// Ends all, those of chance too.
    pub fn clear(&self) {
        let mut state = self.state();
        state.scripted.clear();
        state.random = None;
    }

    /// So many of a thousand requests go wrong in some way.
    pub fn random(&self, seed: u64, per_mille: u32) {
        self.state().random = Some((StdRng::seed_from_u64(seed), per_mille));
    }

    /// How many requests have gone wrong.
    pub fn fired(&self) -> usize {
        self.state().fired
    }

    /// What happens to this request.
    pub(super) fn draw(&self, resource: Resource, verb: Verb) -> Option<Action> {
        let mut state = self.state();
        let fits = |fault: &Fault| {
            fault.times != Some(0)
                && fault.on.resource.is_none_or(|of| of == resource)
                && fault.on.verb.is_none_or(|of| of == verb)
        };
        let scripted = state.scripted.iter_mut().find(|fault| fits(fault)).map(|fault| {
            fault.times = fault.times.map(|times| times.saturating_sub(1));
            fault.action.clone()
        });
        let drawn = scripted.or_else(|| state.random.as_mut().and_then(|(dice, share)| by_chance(dice, *share, verb)));
        state.fired += usize::from(drawn.is_some());
        drawn
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn by_chance(dice: &mut StdRng, per_mille: u32, verb: Verb) -> Option<Action> {
    if dice.random_range(0..1000) >= per_mille {
        return None;
    }
    let bytes = dice.random_range(1..4000);
    let common = [
        Action::Status { code: 500, reason: "InternalError", retry_after: 0 },
        Action::Status { code: 429, reason: "TooManyRequests", retry_after: 1 },
        Action::Status { code: 410, reason: "Expired", retry_after: 0 },
        Action::Garbage("<html>a proxy on the way</html>"),
        Action::Reset,
        Action::Truncate(bytes),
        Action::Slow { bytes: 7, delay: Duration::from_micros(50) },
    ];
    let watch = [
        Action::CloseAfter(bytes % 5),
        Action::GoneInStream,
        Action::ErrorInStream(500),
        Action::Duplicate,
        Action::Truncate(bytes),
    ];
    let choice = if verb == Verb::Watch && dice.random_bool(0.6) { watch.as_slice() } else { common.as_slice() };
    choice.get(dice.random_range(0..choice.len())).cloned()
}

//! From the service behind a frontend to the endpoint that a new flow gets.

use core::ptr::read_volatile;

use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::{
    Address4, Address6, Backend4, Backend6, BackendRef, Extent, Lead, Port, RangesWord, Slot, Standing, Terms,
};

use crate::maps::{BACKENDS4, BACKENDS6, DIRECTORY, SLOTS};
use crate::{affinity, source};

/// A removed backend dies only after its slot is out of sight, so a reader that meets a dead one has read an old
/// extent and finds a living one at its next try. More than two changes during one pick do not happen.
const TRIES: u32 = 4;

/// An endpoint to send to.
pub(crate) struct Target<A> {
    pub(crate) address: A,
    pub(crate) port: Port,
    pub(crate) reference: BackendRef,
}

/// Why a flow gets no endpoint.
pub(crate) enum Nobody {
    /// There is none: refused (spec NE-1).
    Refused,
    /// There is one on another node, where policy Local does not let it go (spec NE-2).
    Elsewhere,
    /// The source is outside of the Service's ranges (spec TP-31).
    Denied,
}

/// The backends of one family.
pub(crate) trait Backends {
    /// An address of the family.
    type Address;
    /// Which family.
    const IPV4: bool;

    /// The endpoint behind a reference, unless it has left.
    fn alive(reference: BackendRef) -> Option<Target<Self::Address>>;

    /// What the backend is in its service port.
    fn standing(reference: BackendRef) -> Standing;
}

/// `BACKENDS4`.
pub(crate) enum V4 {}

/// `BACKENDS6`.
pub(crate) enum V6 {}

impl Backends for V4 {
    type Address = Address4;
    const IPV4: bool = true;

    #[inline(always)]
    fn alive(reference: BackendRef) -> Option<Target<Address4>> {
        let backend: *const Backend4 = BACKENDS4.get_ptr(reference.index())?;
        let life = word(backend.cast(), 0);
        (Backend4::generation(life) == reference.generation()).then_some(Target {
            address: Backend4::address(life),
            port: Backend4::port(life),
            reference,
        })
    }

    #[inline(always)]
    fn standing(reference: BackendRef) -> Standing {
        match BACKENDS4.get_ptr(reference.index()) {
            Some(backend) => Standing(word(backend.cast(), Backend4::STANDING)),
            None => Standing::default(),
        }
    }
}

impl Backends for V6 {
    type Address = Address6;
    const IPV4: bool = false;

    #[inline(always)]
    fn alive(reference: BackendRef) -> Option<Target<Address6>> {
        let backend: *const Backend6 = BACKENDS6.get_ptr(reference.index())?;
        let life = word(backend.cast(), Backend6::LIFE);
        let (first, second) = (word(backend.cast(), 0), word(backend.cast(), 1));
        (Backend6::generation(life) == reference.generation()).then_some(Target {
            address: Backend6::address(first, second),
            port: Backend6::port(life),
            reference,
        })
    }

    #[inline(always)]
    fn standing(reference: BackendRef) -> Standing {
        match BACKENDS6.get_ptr(reference.index()) {
            Some(backend) => Standing(word(backend.cast(), Backend6::STANDING)),
            None => Standing::default(),
        }
    }
}

/// The endpoint for a new flow along `lead`: a random one, or if the Service has affinity, the one that the client had
/// last.
#[inline(always)]
pub(crate) fn endpoint<F: Backends>(ctx: &SockAddrContext, lead: Lead) -> Result<Target<F::Address>, Nobody> {
    let Some(entry) = DIRECTORY.get_ptr(lead.service) else { return Err(Nobody::Refused) };
    if lead.filtered && !source::is_inside(ctx, RangesWord(word(entry.cast(), 3)), F::IPV4) {
        return Err(Nobody::Denied);
    }
    let terms = Terms(word(entry.cast(), 2));
    if terms.timeout() == 0 {
        // SAFETY: the helper takes and touches nothing.
        return chosen::<F>(entry.cast(), lead, terms, unsafe { bpf_get_prandom_u32() });
    }
    let client = affinity::Client::of(ctx, terms);
    let target = match recalled::<F>(&client, lead, terms) {
        Some(target) => target,
        None => chosen::<F>(entry.cast(), lead, terms, client.seed())?,
    };
    client.keep(target.reference);
    Ok(target)
}

/// What the client had last, if that may still serve it.
#[inline(always)]
fn recalled<F: Backends>(client: &affinity::Client, lead: Lead, terms: Terms) -> Option<Target<F::Address>> {
    let reference = client.recall()?;
    let target = F::alive(reference)?;
    let standing = F::standing(reference);
    (standing.port() == terms.port() && standing.may_serve(lead.local)).then_some(target)
}

/// The one of all endpoints that `seed` stands for.
#[inline(always)]
fn chosen<F: Backends>(entry: *const u64, lead: Lead, terms: Terms, seed: u32) -> Result<Target<F::Address>, Nobody> {
    for _ in 0..TRIES {
        let extent = Extent(word(entry, 0));
        let count = extent.count(lead.local);
        if count == 0 {
            return Err(if lead.local && terms.silent() { Nobody::Elsewhere } else { Nobody::Refused });
        }
        let Some(slot) = SLOTS.get_ptr(extent.choice(count, seed)) else { return Err(Nobody::Refused) };
        let slot = Slot(word(slot, 0));
        // A slot that is not local where only local ones were: the extent is stale (see `Slot::local`).
        if lead.local && !slot.local() {
            continue;
        }
        if let Some(target) = F::alive(slot.backend()) {
            return Ok(target);
        }
    }
    Err(Nobody::Refused)
}

/// One aligned word of a map element, read once: the daemon may write it at any moment.
#[inline(always)]
pub(crate) fn word(element: *const u64, at: usize) -> u64 {
    // SAFETY: callers pass an element of a map that has this word; it stays readable until the program ends.
    unsafe { read_volatile(element.wrapping_add(at)) }
}

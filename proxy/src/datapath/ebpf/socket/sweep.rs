//! Destroys sockets that are connected to an endpoint that left, so that their owners connect anew at once.
//!
//! It destroys only connected UDP sockets, which would wait for answers for ever, and TCP sockets that are still
//! connecting. Established TCP connections stay (CT-6, UC-12). The programs keep a flow for each socket that dialled a
//! frontend: for TCP in the socket's storage, which the kernel lists, and for UDP in a map by cookie. A socket that
//! dialled the endpoint itself has no flow.

mod diag;

use std::os::fd::BorrowedFd;

use proxy_abi::{BackendRef, unmapped};
use shunt_model::Family;

use crate::host::netns::{self, Namespace};

/// The maps in which the programs keep flows of sockets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps<'a> {
    /// `PEER`.
    pub(super) storage: BorrowedFd<'a>,
    /// `CONNECTED`.
    pub(super) by_cookie: BorrowedFd<'a>,
}

/// What one sweep did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    /// How many sockets with a flow were found.
    pub(super) examined: usize,
    /// How many sockets were destroyed.
    pub(super) destroyed: usize,
    /// Namespaces, by cookie, that could not be searched, and why. Those that are gone do not count.
    pub(super) failed: Vec<(u64, String)>,
}

/// Destroys the sockets of `namespaces` whose backend is not `alive`.
pub(super) fn sweep(
    namespaces: &[Namespace],
    maps: Maps<'_>,
    alive: &(dyn Fn(Family, BackendRef) -> bool + Sync),
) -> Swept {
    let mut swept = Swept::default();
    let outcomes = match netns::within_each(namespaces, |_| sweep_here(maps, alive)) {
        Ok(outcomes) => outcomes,
        Err(error) => {
            swept.failed.push((0, error.to_string()));
            return swept;
        }
    };
    for (namespace, outcome) in namespaces.iter().zip(outcomes) {
        match outcome {
            Ok(SweptNamespace { examined, destroyed, failed }) => {
                swept.examined = swept.examined.saturating_add(examined);
                swept.destroyed = swept.destroyed.saturating_add(destroyed);
                swept.failed.extend(failed.map(|error| (namespace.cookie, error)));
            }
            Err(error) if netns::is_gone(&error) => {}
            Err(error) => swept.failed.push((namespace.cookie, error.to_string())),
        }
    }
    swept
}

/// A failure is kept as text: a kernel that lists no UDP sockets says ENOENT, as does a namespace that is gone.
fn sweep_here(maps: Maps<'_>, alive: &(dyn Fn(Family, BackendRef) -> bool + Sync)) -> SweptNamespace {
    let mut here = SweptNamespace::default();
    let listed = diag::Diag::open().and_then(|mut diag| Ok((diag.connected(maps)?, diag)));
    let (connected, mut diag) = match listed {
        Ok(listed) => listed,
        Err(error) => {
            here.failed = Some(format!("listing its sockets (CONFIG_INET_DIAG, CONFIG_INET_UDP_DIAG): {error}"));
            return here;
        }
    };
    here.examined = connected.len();
    for socket in &connected {
        let family = if unmapped(socket.flow.backend).is_some() { Family::V4 } else { Family::V6 };
        if alive(family, socket.flow.reference()) {
            continue;
        }
        match diag.destroy(socket) {
            Ok(true) => here.destroyed = here.destroyed.saturating_add(1),
            Ok(false) => {}
            // Go on with the other sockets.
            Err(error) => here.failed = Some(format!("destroying a socket (CONFIG_INET_DIAG_DESTROY): {error}")),
        }
    }
    here
}

/// What was done in one namespace.
#[derive(Default)]
struct SweptNamespace {
    examined: usize,
    destroyed: usize,
    failed: Option<String>,
}

#[cfg(test)]
mod tests;

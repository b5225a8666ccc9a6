//! What the DNS answers, asked of the zone and over the wire.

#[cfg(test)]
mod alone;
#[cfg(test)]
mod answers;
#[cfg(test)]
mod changes;
#[cfg(test)]
mod client;
#[cfg(test)]
mod corefile;
#[cfg(test)]
mod explained;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod following;
#[cfg(test)]
mod forwarding;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod operating;
#[cfg(test)]
mod places;
#[cfg(test)]
mod program;
#[cfg(test)]
mod rewriting;
#[cfg(test)]
mod running;
#[cfg(test)]
mod slow;
#[cfg(test)]
mod transfers;
#[cfg(test)]
mod upstreams;
#[cfg(test)]
mod wire;

//! The flow corpus: stories of Kubernetes objects and flows, written as data, and what is needed to play them.
//!
//! `tests/flows/cast.yaml` says who plays, the other files there hold the stories. Nothing here knows a data path: a
//! reader puts the objects of one [`Scene`] after another in force and says what becomes of each [`Flow`]. A reader
//! that evaluates packets instead of sending them implements [`Rules`] and gets the way from node to node for free.

mod book;
mod cast;
mod format;
mod reader;
mod report;
mod scene;
mod sockets;
#[cfg(test)]
mod tests;
mod twin;

pub use book::{Book, load};
pub use cast::{Cast, Member, OTHER_PORT, PORT, Role, Server};
pub use format::{Expect, OnlyFamily, RawFlow, SourceSeen, Step, Story};
pub use reader::{Outcome, Packet, Reader, Rules, Seen, Source, judge, play, read_rules};
pub use report::{Played, Report, matrix};
pub use scene::{Destination, Flow, Protocol, Scene, scenes};
pub use sockets::{Dialled, Translation, is_silent, judge_sockets};

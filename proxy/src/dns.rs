//! The bundled DNS in the daemon: its server, its addresses on this node, the watch over it, and who serves in its place.

pub mod addresses;
pub mod choice;
pub mod service;
pub mod watch;

//! The bundled DNS in the daemon: its server, its addresses on this node, the watch over it, and the choice of the
//! server that the cluster DNS address leads to.

pub mod addresses;
pub mod choice;
pub mod service;
pub mod watch;

//! The bundled DNS in the daemon: its server, its addresses on this node, the watch over it, and the choice of the
//! server that the cluster DNS address leads to. It learns of a view when the kernel serves that.

pub mod addresses;
pub mod choice;
pub mod reachable;
pub mod service;
pub mod watch;

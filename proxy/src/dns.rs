//! The bundled DNS in the daemon: its server, its addresses on this node, and the watch over it.

pub mod addresses;
pub mod service;
pub mod watch;

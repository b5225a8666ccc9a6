//! Cluster DNS: a pure zone over the model, a forwarder, and the server that joins them.
#![forbid(unsafe_code)]

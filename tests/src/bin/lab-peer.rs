//! A server or client placed inside a pod of the lab.
#![forbid(unsafe_code)]

fn main() {}

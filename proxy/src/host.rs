//! The host that the daemon runs on: its network namespaces, addresses, cgroups, and what this process may do.

pub mod addresses;
pub mod cgroup;
pub mod devices;
pub mod fd_store;
pub mod local_ports;
pub(crate) mod netlink;
pub mod netns;
pub mod privileges;
pub mod sysctls;

//! Which addresses and ports a process of the node cannot bind, because connections to them go to a Service (TP-7).

use crate::lookup::{Family, Tables, V4, V6, address_value};
use crate::{Address6, Port, same, scope, unmapped};

/// Whether connections to `address` and `port` are taken as those to a node port, and a process that binds them would
/// wait in vain. The unspecified address stands for all addresses of the family (see
/// [`AddressValue`](crate::AddressValue)).
#[inline(always)]
pub fn is_node_port<F: Family, T: Tables>(tables: &T, address: F::Address, port: Port, protocol: u8) -> bool {
    // Most ports are none, so the address is looked at last.
    F::lead(tables, None, port, protocol, scope::ANY).is_some()
        && address_value(tables, &F::listed(address)).takes_node_ports()
}

/// As [`is_node_port`] for an IPv6 socket, which holds IPv4 addresses in mapped form. Bound to `::` it takes IPv4 as
/// well, unless it has the option `IPV6_V6ONLY`.
#[inline(always)]
pub fn is_node_port_of_ipv6_socket<T: Tables>(
    tables: &T,
    address: Address6,
    v6only: impl FnOnce() -> bool,
    port: Port,
    protocol: u8,
) -> bool {
    if let Some(four) = unmapped(address) {
        return is_node_port::<V4, T>(tables, four, port, protocol);
    }
    is_node_port::<V6, T>(tables, address, port, protocol)
        || (same(&address, &[0; 4]) && is_node_port::<V4, T>(tables, 0, port, protocol) && !v6only())
}

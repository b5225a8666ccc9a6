//! Bounded places for what has to wait, shared among clients: a client that holds many gets no more once they run
//! short.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// So many places. A client gets another one while it has fewer than are free: alone it can take half of them, beside a
/// greedy one it still finds some, and nothing has to be configured (the dynamic thresholds of switch buffers).
#[derive(Debug)]
pub struct Admission {
    places: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// A place, given back when this is dropped.
#[derive(Debug)]
pub struct Place {
    of: Arc<Admission>,
    client: IpAddr,
}

impl Admission {
    /// With none taken.
    pub fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places, taken: Mutex::default() })
    }

    /// A place for `client`, unless it holds as many as are free.
    pub fn enter(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let client = client.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.places.saturating_sub(taken.all);
        let own = taken.by_client.get(&client).copied().unwrap_or_default();
        if own >= free {
            return None;
        }
        taken.all += 1;
        taken.by_client.insert(client, own + 1);
        Some(Place { of: Arc::clone(self), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(own) = taken.by_client.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_greedy_client_leaves_room_for_others() {
        let places = Admission::new(16);
        let greedy: Vec<Place> = std::iter::from_fn(|| places.enter(client(1))).collect();
        assert_eq!(greedy.len(), 8);
        let second: Vec<Place> = std::iter::from_fn(|| places.enter(client(2))).collect();
        assert_eq!(second.len(), 4);
        assert!(places.enter(client(3)).is_some());
    }

    #[test]
    fn places_come_back() {
        let places = Admission::new(2);
        let first = places.enter(client(1)).unwrap();
        assert!(places.enter(client(1)).is_none());
        let mapped = IpAddr::from([0, 0, 0, 0, 0, 0xffff, 0x0a00, 1]);
        assert!(places.enter(mapped).is_none(), "one client, however it is written");
        drop(first);
        assert!(places.enter(client(1)).is_some());
        assert!(Admission::new(0).enter(client(1)).is_none());
        assert!(places.taken.lock().unwrap().by_client.is_empty());
    }
}

//! Places for connections whose peer has not shown who it is.
//!
//! What such a peer sends before it is known holds memory: the pieces of a handshake, the beginning of
//! a request. So what one connection may hold is little, the number of them is bounded, and one
//! address has a share of that: who opens many leaves the others theirs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places for all addresses together.
const PLACES: usize = 2048;
/// Places of one address.
const SHARE: usize = 256;

/// Places of one sort, of one listener.
pub(crate) struct Places {
    all: Arc<Semaphore>,
    shares: Mutex<HashMap<IpAddr, Weak<Semaphore>>>,
}

/// What a connection holds until its peer shows who it is, or until it ends. Clones hold the same
/// place.
#[derive(Clone, Default)]
pub(crate) struct Unproven(Arc<Mutex<Option<Place>>>);

impl Unproven {
    pub(crate) fn new(place: Option<Place>) -> Unproven {
        Unproven(Arc::new(Mutex::new(place)))
    }

    /// A request showed who the peer is.
    pub(crate) fn proven(&self) {
        self.0.lock().take();
    }
}

/// A place, until this is dropped.
pub(crate) struct Place {
    _share: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

impl Places {
    pub(crate) fn new() -> Places {
        Places {
            all: Arc::new(Semaphore::new(PLACES)),
            shares: Mutex::default(),
        }
    }

    /// Waits for a place. Who waits comes after those of its own address only, and then after those
    /// who have waited for longer.
    pub(crate) async fn take(&self, address: IpAddr) -> Place {
        let share = self.share(address);
        Place {
            _share: acquire(share).await,
            _place: acquire(self.all.clone()).await,
        }
    }

    fn share(&self, address: IpAddr) -> Arc<Semaphore> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(&address).and_then(Weak::upgrade) {
            return share;
        }
        // The permits hold their share; one that nobody holds is whole.
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(SHARE));
        shares.insert(address, Arc::downgrade(&share));
        share
    }
}

async fn acquire(places: Arc<Semaphore>) -> OwnedSemaphorePermit {
    let permit = places.acquire_owned().await;
    permit.expect("nobody closes it")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures::FutureExt as _;

    use super::*;

    fn address(number: usize) -> IpAddr {
        let number = u32::try_from(number).expect("small");
        IpAddr::from(Ipv4Addr::from_bits(number))
    }

    #[test]
    fn who_takes_all_of_its_places_leaves_others_theirs() {
        let places = Places::new();
        let take = |number| places.take(address(number)).now_or_never();
        let mut taken: Vec<Place> = (0..SHARE).map_while(|_| take(1)).collect();
        assert_eq!(taken.len(), SHARE);
        assert!(take(1).is_none());
        assert!(take(2).is_some());
        taken.pop();
        assert!(take(1).is_some());
        drop(taken);
        assert!(take(3).is_some());
        assert_eq!(places.shares.lock().len(), 1, "of whom nobody is there");
        assert_eq!(places.all.available_permits(), PLACES);
    }

    #[test]
    fn who_shows_who_it_is_gives_its_place_to_another() {
        let places = Places::new();
        let take = || places.take(address(1)).now_or_never();
        let taken: Vec<Unproven> = (0..SHARE).map(|_| Unproven::new(take())).collect();
        assert!(take().is_none());
        let request = taken[0].clone();
        request.proven();
        request.proven();
        assert!(take().is_some());
        drop(taken);
        assert_eq!(places.all.available_permits(), PLACES);
    }

    #[test]
    fn there_are_no_more_places_however_many_addresses_there_are() {
        let places = Places::new();
        let take = |number| places.take(address(number)).now_or_never();
        let mut taken: Vec<Place> = (0..PLACES).map_while(take).collect();
        assert_eq!(taken.len(), PLACES);
        assert!(take(PLACES).is_none());
        taken.pop();
        assert!(take(PLACES).is_some());
    }
}

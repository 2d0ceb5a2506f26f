//! The addresses of the brokers that this process was connected to, whatever a resolver returns for their names. They
//! are exempt from bans, because banning one would disconnect this host from the fleet.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The most addresses that are kept.
const MAX_PEERS: usize = 16;

/// A handle that the link and the exempt list share. Invariant: it has each peer that accepted a login of this process
/// once, the latest last, at most `MAX_PEERS`.
#[derive(Clone, Debug, Default)]
pub struct PeerAddresses(Arc<Mutex<VecDeque<IpAddr>>>);

impl PeerAddresses {
    /// Records that the peer accepted the login.
    pub(crate) fn record(&self, peer: IpAddr) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = peer.to_canonical();
        peers.retain(|known| *known != peer);
        peers.push_back(peer);
        if peers.len() > MAX_PEERS {
            peers.pop_front();
        }
    }

    /// The addresses, the latest last.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: usize) -> IpAddr {
        format!("192.0.2.{last}").parse().unwrap()
    }

    #[test]
    fn latest_peers_are_kept_once_each() {
        let peers = PeerAddresses::default();
        for last in 0..=MAX_PEERS {
            peers.clone().record(address(last));
        }
        peers.record("::ffff:192.0.2.3".parse().unwrap());
        let addresses = peers.addresses();
        let (first, last) = (addresses[0], addresses[MAX_PEERS - 1]);
        assert_eq!((addresses.len(), first, last), (MAX_PEERS, address(1), address(3)));
    }
}

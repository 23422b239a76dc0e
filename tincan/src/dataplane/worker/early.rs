//! Datagrams of flows that are not known yet: a peer may validate a path a moment before we do, and send at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::link::FlowKey;

/// Most datagrams kept, of all strangers together.
const MOST: usize = 64;
/// Of one sender: what it says again is the same.
const MOST_OF_ONE: usize = 8;
/// Longest datagram kept in bytes: handshakes and first frames are shorter.
const LONGEST: usize = 2048;
/// How long they are of use.
const LIFETIME: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct EarlyDatagrams {
    kept: VecDeque<(Instant, FlowKey, Vec<u8>)>,
}

impl EarlyDatagrams {
    /// Keeps a datagram, in place of the oldest where there is no room; tells whether it did.
    pub(super) fn keep(&mut self, now: Instant, flow: FlowKey, datagram: &[u8]) -> bool {
        while self.kept.front().is_some_and(|(at, _, _)| now.saturating_duration_since(*at) > LIFETIME) {
            self.kept.pop_front();
        }
        let of_sender = self.kept.iter().filter(|(_, key, _)| *key == flow).count();
        let fits = of_sender < MOST_OF_ONE && datagram.len() <= LONGEST;
        if fits {
            if self.kept.len() == MOST {
                self.kept.pop_front();
            }
            self.kept.push_back((now, flow, datagram.to_vec()));
        }
        fits
    }

    /// The datagrams of a flow that has become known, oldest first.
    pub(super) fn take(&mut self, now: Instant, flow: FlowKey) -> Vec<Vec<u8>> {
        let (of_flow, others) = std::mem::take(&mut self.kept).into_iter().partition(|(_, key, _)| *key == flow);
        self.kept = others;
        let of_flow: VecDeque<(Instant, FlowKey, Vec<u8>)> = of_flow;
        of_flow
            .into_iter()
            .filter(|(at, _, _)| now.saturating_duration_since(*at) <= LIFETIME)
            .map(|(_, _, datagram)| datagram)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::PortKind;

    fn flow(port: u16) -> FlowKey {
        FlowKey { port: PortKind::Secured, from: ([192, 0, 2, 1], port).into(), channel: None }
    }

    #[test]
    fn a_flow_gets_its_own_datagrams_in_order_and_once() {
        let (now, mut early) = (Instant::now(), EarlyDatagrams::default());
        for (port, byte) in [(1, 10), (2, 20), (1, 11)] {
            assert!(early.keep(now, flow(port), &[byte]));
        }
        assert_eq!(early.take(now, flow(1)), [vec![10], vec![11]]);
        assert_eq!(early.take(now, flow(1)), Vec::<Vec<u8>>::new());
        assert_eq!(early.take(now, flow(2)), [vec![20]]);
    }

    #[test]
    fn strangers_fill_no_more_than_the_room_and_for_no_longer_than_it_serves() {
        let (now, mut early) = (Instant::now(), EarlyDatagrams::default());
        assert!(!early.keep(now, flow(1), &[0; LONGEST + 1]));
        for _ in 0..MOST_OF_ONE {
            assert!(early.keep(now, flow(1), &[1]));
        }
        assert!(!early.keep(now, flow(1), &[1]));
        // The oldest make room for the others.
        for port in 2..1000 {
            assert!(early.keep(now, flow(port), &[2]));
        }
        assert_eq!(early.kept.len(), MOST);
        assert_eq!(early.take(now, flow(1)), Vec::<Vec<u8>>::new());
        let later = now + LIFETIME + Duration::from_millis(1);
        assert!(early.keep(later, flow(2), &[2]));
        assert_eq!(early.take(later, flow(999)), Vec::<Vec<u8>>::new());
    }
}

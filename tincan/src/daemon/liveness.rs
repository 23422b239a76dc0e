//! Which links carried frames of their peers lately: ICE takes them for words of the peer.

use std::collections::HashMap;

use crate::daemon::Daemon;
use crate::daemon::host::EngineTraffic;
use crate::ice::IceCommand;
use crate::link::LinkId;
use crate::node::TrafficSource as _;

/// Frames received on each link when it was looked at last.
#[derive(Debug, Default)]
pub(super) struct Liveness {
    received: HashMap<LinkId, u64>,
}

impl Liveness {
    /// The links whose totals are higher than at the last look.
    fn grown(&mut self, totals: HashMap<LinkId, u64>) -> Vec<LinkId> {
        let has_grown = |link: &LinkId, total: u64| self.received.get(link).is_some_and(|before| *before < total);
        let grown = totals.iter().filter(|(link, total)| has_grown(link, **total)).map(|(link, _)| *link).collect();
        self.received = totals;
        grown
    }
}

impl Daemon {
    /// Tells ICE of the links on which frames came since the last look.
    pub(super) fn tell_traffic(&mut self) {
        let source = EngineTraffic { engine: &self.engine, fast_path: &self.fast_path };
        let links = self.engine.all_links();
        let totals = links.into_iter().map(|link| (link, source.traffic(link).received_frames)).collect();
        for link in self.liveness.grown(totals) {
            self.ice.command(IceCommand::TrafficSeen { link });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_links_that_were_there_and_received_more_are_told() {
        let mut liveness = Liveness::default();
        let (quiet, busy, new) = (LinkId(1), LinkId(2), LinkId(3));
        assert_eq!(liveness.grown(HashMap::from([(quiet, 5), (busy, 5)])), []);
        assert_eq!(liveness.grown(HashMap::from([(quiet, 5), (busy, 6), (new, 9)])), [busy]);
        assert_eq!(liveness.grown(HashMap::from([(new, 9)])), []);
        assert_eq!(liveness.grown(HashMap::from([(new, 10), (busy, 7)])), [new]);
    }
}

//! Merging behind uplinks that do not: single TCP frames go through a veth pair whose far end runs GRO.
//!
//! Made when the first uplink needs it, made again when somebody removed it; without it frames arrive unmerged.

use crate::daemon::merging::device_name;
use crate::dataplane::kernel::forwarder::Forwarder;
use crate::edge::ethtool;
use crate::edge::netlink::Netlink;

/// End the names of the two devices.
const NEAR: &str = "-in";
const FAR: &str = "-out";

/// See the module's head.
#[derive(Debug)]
pub(super) struct MergingVeth {
    near: String,
    far: String,
    tap: String,
    /// Index of the near end while the pair is well, and of the far end.
    indices: Option<[u32; 2]>,
    /// Why there is no pair; said once.
    problem: Option<String>,
}

impl MergingVeth {
    /// Nothing is made yet.
    pub(super) fn new(tap: &str) -> Self {
        let (near, far) = (device_name(tap, NEAR), device_name(tap, FAR));
        Self { near, far, tap: tap.to_owned(), indices: None, problem: None }
    }

    /// The near end's index, after making the pair where it is missing.
    pub(super) async fn ready(&mut self, netlink: &Netlink, forwarder: &mut Forwarder) -> Option<u32> {
        match self.make(netlink, forwarder).await {
            Ok([near, _]) => {
                self.problem = None;
                Some(near)
            }
            Err(error) => {
                let problem = format!("{error:#}");
                if self.problem.as_ref() != Some(&problem) {
                    tracing::warn!(problem, "plain frames arrive unmerged where the uplink does not merge");
                }
                self.problem = Some(problem);
                None
            }
        }
    }

    async fn make(&mut self, netlink: &Netlink, forwarder: &mut Forwarder) -> anyhow::Result<[u32; 2]> {
        let found = [netlink.own_device(&self.near, &self.tap).await?, netlink.own_device(&self.far, &self.tap).await?];
        // One of the daemon before is as good, if what comes out of it is checked.
        if let [Some(near), Some(far)] = &found
            && self.indices.is_none_or(|indices| [near.index, far.index] == indices)
            && near.is_up
            && far.is_up
            && forwarder.is_guarded(far.index)
        {
            forwarder.attach_helper(far.index)?;
            let indices = [near.index, far.index];
            self.indices = Some(indices);
            return Ok(indices);
        }
        self.indices = None;
        if let Some(left) = found.iter().flatten().next() {
            netlink.remove_device(left.index).await?;
        }
        let indices = netlink.add_veth([&self.near, &self.far], &self.tap).await?;
        // The far end polls (NAPI), and so merges, only what the near end sends in single packets.
        ethtool::set_tcp_segmentation(&self.near, false)?;
        ethtool::set_merging(&self.far, true)?;
        let [near, far] = indices;
        forwarder.attach_helper(far)?;
        netlink.set_up(far).await?;
        netlink.set_up(near).await?;
        tracing::info!(devices = ?[&self.near, &self.far], "merging by a veth pair, as an uplink does not merge");
        self.indices = Some(indices);
        Ok(indices)
    }

    /// What `status` says of it, beside other words.
    pub(super) fn describe(&self, used: Option<u32>) -> String {
        used.map_or_else(String::new, |_| format!("; by {} behind uplinks without GRO", self.near))
    }

    /// Removes the pair.
    pub(super) async fn stop(&self, netlink: &Netlink) -> anyhow::Result<()> {
        match self.indices {
            Some([near, _]) => netlink.remove_device(near).await,
            None => Ok(()),
        }
    }
}

//! Merging on receive: a sleeping VXLAN device holds the plain port, so that the kernel's GRO joins the TCP frames that
//! arrive there before the kernel engine sees them.
//!
//! User space's socket then has another port, and the kernel programs translate. What somebody removed is made again by
//! the next [`Merging::mend`]; meanwhile frames arrive unmerged.

use anyhow::{Context, anyhow, bail};

use crate::daemon::host::PortWish;
use crate::dataplane::kernel::forwarder::Forwarder;
use crate::edge::netlink::Netlink;
use crate::edge::netlink::devices::{Device, UpError};

/// Where ports are looked for when the operator named none: registered ones (RFC 6335), below what kernels give to
/// sockets by themselves, because a socket in the way would be another program's.
const PORTS: std::ops::Range<u16> = 20_000..30_000;
/// Ports tried before merging is given up.
const TRIES: u32 = 16;
/// Longest name of an interface.
const MAX_NAME_LEN: usize = 15;
/// Ends the device's name.
const ENDING: &str = "-gro";

/// The device and what it holds.
#[derive(Debug)]
pub(super) struct Merging {
    device: String,
    tap: String,
    /// The plain port as peers know it.
    pub(super) port: u16,
    index: u32,
    /// The device is up; otherwise the reason why not.
    state: Result<(), String>,
}

impl Merging {
    /// Takes a plain port as wished; an error says why frames will arrive unmerged.
    pub(super) async fn start(
        netlink: &Netlink,
        forwarder: &mut Forwarder,
        tap: &str,
        wish: PortWish,
    ) -> anyhow::Result<Self> {
        let device = device_name(tap, ENDING);
        if let Some(left) = netlink.own_device(&device, tap).await? {
            if let Some(port) = held_before(forwarder, &left, wish) {
                forwarder.attach_helper(left.index)?;
                return Ok(Self { device, tap: tap.to_owned(), port, index: left.index, state: Ok(()) });
            }
            tracing::info!(device, "removing the device an earlier daemon left");
            netlink.remove_device(left.index).await?;
        }
        let mut favourite = wish.favourite();
        for _ in 0..TRIES {
            let port = match (wish.fixed, favourite.take()) {
                (0, Some(favourite)) => favourite,
                (0, None) => random_port()?,
                (fixed, _) => fixed,
            };
            let (device, tap) = (device.clone(), tap.to_owned());
            let mut merging = Self { device, tap, port, index: 0, state: Ok(()) };
            match merging.make(netlink, forwarder).await {
                Ok(()) => return Ok(merging),
                Err(UpError::PortTaken) if wish.fixed == 0 => {}
                Err(UpError::PortTaken) => bail!("UDP port {port} is taken"),
                Err(UpError::Other(error)) => return Err(error),
            }
        }
        bail!("{TRIES} UDP ports from {} on are taken", PORTS.start)
    }

    /// Makes the device, guarded before it is up; what was begun is removed after a failure.
    async fn make(&mut self, netlink: &Netlink, forwarder: &mut Forwarder) -> Result<(), UpError> {
        self.index = netlink.add_vxlan(&self.device, &self.tap, self.port).await.map_err(UpError::Other)?;
        let up = match forwarder.attach_helper(self.index) {
            Ok(()) => netlink.set_up(self.index).await,
            Err(error) => Err(UpError::Other(error)),
        };
        if up.is_err()
            && let Err(error) = netlink.remove_device(self.index).await
        {
            tracing::warn!(device = self.device, "a device stays behind: {error:#}");
        }
        up
    }

    /// Makes what is missing again, and says so once.
    pub(super) async fn mend(&mut self, netlink: &Netlink, forwarder: &mut Forwarder) {
        let state = self.try_mend(netlink, forwarder).await.map_err(|error| format!("{error:#}"));
        if state != self.state {
            match &state {
                Ok(()) => tracing::info!(device = self.device, "plain frames are merged again on receive"),
                Err(reason) => tracing::warn!(device = self.device, reason, "plain frames arrive unmerged"),
            }
            self.state = state;
        }
    }

    async fn try_mend(&mut self, netlink: &Netlink, forwarder: &mut Forwarder) -> anyhow::Result<()> {
        match netlink.own_device(&self.device, &self.tap).await? {
            Some(device) if device.index == self.index && device.is_up => return Ok(()),
            Some(device) => netlink.remove_device(device.index).await?,
            None => {}
        }
        tracing::info!(device = self.device, "somebody took the device away; it is made again");
        match self.make(netlink, forwarder).await {
            Ok(()) => Ok(()),
            Err(UpError::PortTaken) => bail!("another program has taken UDP port {}", self.port),
            Err(UpError::Other(error)) => Err(error),
        }
    }

    /// Removes the device.
    pub(super) async fn stop(&self, netlink: &Netlink) -> anyhow::Result<()> {
        netlink.remove_device(self.index).await.with_context(|| format!("cannot remove {}", self.device))
    }

    /// Whether the device holds the port, so that uplinks that merge (GRO) merge plain frames.
    pub(super) fn is_awake(&self) -> bool {
        self.state.is_ok()
    }

    /// One phrase for `status`.
    pub(super) fn describe(&self) -> String {
        match &self.state {
            Ok(()) => format!("merging on receive by {}", self.device),
            Err(reason) => format!("not merging on receive: {reason}"),
        }
    }
}

/// The port that a device of the daemon before holds, if it can go on as it is.
fn held_before(forwarder: &Forwarder, device: &Device, wish: PortWish) -> Option<u16> {
    let before = forwarder.adopted_ports().filter(|before| before.is_held)?;
    let is_wished = wish.fixed == 0 || wish.fixed == before.plain;
    (device.is_up && is_wished && forwarder.is_guarded(device.index)).then_some(before.plain)
}

/// The TAP's name with an ending of four bytes, cut to what the kernel takes.
pub(super) fn device_name(tap: &str, ending: &str) -> String {
    let kept: String = tap.chars().take(MAX_NAME_LEN - ending.len()).collect();
    kept + ending
}

fn random_port() -> anyhow::Result<u16> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).map_err(|error| anyhow!("the kernel gives no random numbers: {error}"))?;
    Ok(PORTS.start + u16::from_be_bytes(bytes) % (PORTS.end - PORTS.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_fit_and_show_the_tap() {
        assert_eq!(device_name("ipop", ENDING), "ipop-gro");
        assert_eq!(device_name("a-name-of-15-ch", ENDING), "a-name-of-1-gro");
        assert!(device_name("a-name-of-15-ch", ENDING).len() <= MAX_NAME_LEN);
    }
}

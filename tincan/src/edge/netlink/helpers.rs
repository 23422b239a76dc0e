//! Devices that a daemon made for itself beside the TAP; their alias says whose they are.

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

use super::{Netlink, errno, explain};

/// Begins the alias of every such device; the TAP's name follows.
const ALIAS: &str = "tincan helper of ";

/// A device of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Helper {
    index: u32,
    pub name: String,
    /// The TAP of the daemon that made it.
    pub tap: String,
}

impl Netlink {
    /// Every helper device in this network namespace.
    pub async fn helpers(&self) -> anyhow::Result<Vec<Helper>> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| explain(&error, "cannot list the interfaces"))?;
        Ok(links.iter().filter_map(helper).collect())
    }

    /// Removes one; that it is gone already is no error.
    pub async fn remove_helper(&self, helper: &Helper) -> anyhow::Result<()> {
        match self.handle.link().del(helper.index).execute().await {
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(()),
            other => other.map_err(|error| explain(&error, &format!("cannot remove {}", helper.name))),
        }
    }
}

fn helper(link: &LinkMessage) -> Option<Helper> {
    let mut attributes = link.attributes.iter();
    let tap = attributes.clone().find_map(|attribute| {
        let LinkAttribute::IfAlias(alias) = attribute else { return None };
        alias.strip_prefix(ALIAS).map(str::to_owned)
    })?;
    let name = attributes.find_map(|attribute| {
        let LinkAttribute::IfName(name) = attribute else { return None };
        Some(name.clone())
    })?;
    Some(Helper { index: link.header.index, name, tap })
}

//! The kernel engine's helper devices: a VXLAN device that holds the plain port, and a veth pair whose far end merges.
//!
//! The engine's guard decides what comes out of them. What the guard would miss finds no way on: no IPv6, no ARP, strict
//! reverse path filtering. Their alias says whose they are.

use std::io;

use anyhow::{Context, anyhow, ensure};
use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::link::{InfoVxlan, LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::{LinkUnspec, LinkVeth, LinkVxlan};

use super::{Netlink, errno, explain};

/// Begins the alias of every device made here; the TAP's name follows.
const ALIAS: &str = "tincan helper of ";

/// A device this program made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub index: u32,
    pub is_up: bool,
}

/// A device that some daemon made beside its TAP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Helper {
    pub index: u32,
    pub name: String,
    /// The TAP of the daemon that made it.
    pub tap: String,
}

/// Why a device does not come up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// Another socket has its port.
    #[error("UDP port is taken")]
    PortTaken,
    #[error("{0:#}")]
    Other(anyhow::Error),
}

impl Netlink {
    /// The device of this name, if this program made it for `tap`; an error when it is somebody else's.
    pub async fn own_device(&self, name: &str, tap: &str) -> anyhow::Result<Option<Device>> {
        let found = self.find(name).await.map_err(|error| explain(&error, &format!("cannot look up {name}")))?;
        let Some(link) = found else { return Ok(None) };
        let alias = alias(tap);
        let is_ours =
            link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::IfAlias(text) if *text == alias));
        ensure!(is_ours, "there is an interface {name} already that is not ours: rename or remove it");
        Ok(Some(Device { index: link.header.index, is_up: link.header.flags.contains(LinkFlags::Up) }))
    }

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

    /// Makes a VXLAN device for UDP port `port`, down, for any VNI and both outer families; returns its index.
    pub async fn add_vxlan(&self, name: &str, tap: &str, port: u16) -> anyhow::Result<u32> {
        let message = LinkVxlan::new(name, 0)
            .collect_metadata(true)
            .learning(false)
            .port(port)
            .append_info_data(InfoVxlan::UDPZeroCsumTX(true))
            .append_info_data(InfoVxlan::UDPZeroCsumRX(true))
            .build();
        self.handle.link().add(message).execute().await.map_err(|error| explain(&error, &making(name)))?;
        let index = self.index_of(name).await?;
        self.close(name, index, tap).await?;
        Ok(index)
    }

    /// Makes a pair of Ethernet devices, both down, what leaves one arrives at the other; returns their indices.
    pub async fn add_veth(&self, names: [&str; 2], tap: &str) -> anyhow::Result<[u32; 2]> {
        let [near, far] = names;
        let message = LinkVeth::new(near, far).build();
        self.handle.link().add(message).execute().await.map_err(|error| explain(&error, &making(near)))?;
        let mut indices = [0; 2];
        for (index, name) in indices.iter_mut().zip(names) {
            *index = self.index_of(name).await?;
            self.close(name, *index, tap).await?;
        }
        Ok(indices)
    }

    async fn index_of(&self, name: &str) -> anyhow::Result<u32> {
        let found = self.find(name).await.map_err(|error| explain(&error, &making(name)))?;
        Ok(found.with_context(|| format!("{name} vanished"))?.header.index)
    }

    /// Names a device's owner and closes it to the stack, or removes it.
    async fn close(&self, name: &str, index: u32, tap: &str) -> anyhow::Result<()> {
        let change = LinkUnspec::new_with_index(index).alias(alias(tap)).arp(false).build();
        let named = self.handle.link().set(change).execute().await.map_err(|error| explain(&error, &making(name)));
        let closed = named.and_then(|()| close_to_the_stack(name).with_context(|| making(name)));
        if closed.is_err() {
            self.remove_device(index).await?;
        }
        closed
    }

    /// Sets a device up; for a VXLAN device this is when it takes its port.
    pub async fn set_up(&self, index: u32) -> Result<(), UpError> {
        let change = LinkUnspec::new_with_index(index).up().build();
        match self.handle.link().set(change).execute().await {
            Err(error) if errno(&error) == Some(Errno::EADDRINUSE) => Err(UpError::PortTaken),
            other => other.map_err(|error| UpError::Other(explain(&error, "cannot set a helper device up"))),
        }
    }

    /// Removes a device; one that is not there is no error.
    pub async fn remove_device(&self, index: u32) -> anyhow::Result<()> {
        match self.handle.link().del(index).execute().await {
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(()),
            other => other.map_err(|error| explain(&error, "cannot remove a helper device")),
        }
    }
}

fn making(name: &str) -> String {
    format!("cannot make the helper device {name}")
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

fn alias(tap: &str) -> String {
    format!("{ALIAS}{tap}")
}

/// No IPv6 and strict reverse path filtering (RFC 3704): IPv4 from it is never accepted, as no route leads to it.
fn close_to_the_stack(name: &str) -> anyhow::Result<()> {
    let settings = [
        (format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1"),
        (format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1"),
    ];
    for (path, value) in settings {
        match std::fs::write(&path, value) {
            // A kernel without that family.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(|error| anyhow!("{path}: {error}"))?,
        }
    }
    Ok(())
}

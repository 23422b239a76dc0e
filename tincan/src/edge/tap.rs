//! The TAP device: Ethernet frames of this host, each behind a vnet header, segmentation left to us.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use anyhow::{Context, bail};
use nix::net::if_::if_nametoindex;
use thiserror::Error;

/// `TUN_F_*` of `linux/if_tun.h`: what the kernel may leave undone in frames it hands out, and accepts undone.
const CHECKSUM: libc::c_ulong = 0x01;
const TSO4: libc::c_ulong = 0x02;
const TSO6: libc::c_ulong = 0x04;
const TSO_ECN: libc::c_ulong = 0x08;
const USO4: libc::c_ulong = 0x20;
const USO6: libc::c_ulong = 0x40;

/// `TUNSETOFFLOAD`: _IOW('T', 208, unsigned int), whose argument is the value itself.
const TUNSETOFFLOAD: libc::c_ulong = nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>());

/// `TUNSETPERSIST`: _IOW('T', 203, int), whose argument is the value itself.
const TUNSETPERSIST: libc::c_ulong = nix::request_code_write!(b'T', 203, size_of::<libc::c_int>());

nix::ioctl_write_int_bad!(set_offload, TUNSETOFFLOAD);
nix::ioctl_write_int_bad!(set_persist, TUNSETPERSIST);
nix::ioctl_read_bad!(get_hwaddr, libc::SIOCGIFHWADDR, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_hwaddr, libc::SIOCSIFHWADDR, libc::ifreq);

/// A TAP of our own; it goes when this is dropped, unless a [`TapHold`] lets it stay.
#[derive(Debug)]
pub struct Tap {
    name: String,
    index: u32,
    mac: [u8; 6],
    segments_udp: bool,
    file: OwnedFd,
}

/// Another process holds the device.
#[derive(Debug, Error)]
#[error("the TAP {0} is in use: a daemon is running with it; stop that, or choose another with --tap")]
pub struct InUse(String);

/// Says whether a TAP stays without anyone holding it; dropping this takes that back, unless it was left.
#[derive(Debug)]
pub struct TapHold {
    file: OwnedFd,
    is_left: bool,
}

impl Tap {
    /// Makes the device. One that exists is never taken over.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        if if_nametoindex(name).is_ok() {
            bail!("a network device {name} exists already and is not ours: choose another with --tap, or remove it");
        }
        let (file, segments_udp) = open(name)?;
        let mac = set_mac(&file).context("cannot set the TAP's Ethernet address")?;
        Self::opened(name, mac, segments_udp, file)
    }

    /// Takes over a device that is known to be ours and stayed when its daemon ended; it keeps its address.
    pub fn adopt(name: &str) -> anyhow::Result<Self> {
        let (file, segments_udp) = open(name)?;
        let mac = mac_of(&file).context("cannot read the TAP's Ethernet address")?;
        Self::opened(name, mac, segments_udp, file)
    }

    fn opened(name: &str, mac: [u8; 6], segments_udp: bool, file: OwnedFd) -> anyhow::Result<Self> {
        let index = if_nametoindex(name).with_context(|| format!("the TAP {name} vanished"))?;
        Ok(Self { name: name.to_owned(), index, mac, segments_udp, file })
    }

    /// Lets the device stay when it is closed by the death of this process.
    pub fn hold(&self) -> anyhow::Result<TapHold> {
        let file = self.file.try_clone().context("cannot hold the TAP")?;
        set_persistent(&file, true)?;
        Ok(TapHold { file, is_left: false })
    }

    /// The device goes when it is closed, whoever let it stay.
    pub fn end_hold(&self) -> anyhow::Result<()> {
        set_persistent(&self.file, false)
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's interface index.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The device's Ethernet address, random and locally administered.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Whether UDP super-frames are handed out and accepted (Linux 6.2); TCP ones always are.
    #[must_use]
    pub fn segments_udp(&self) -> bool {
        self.segments_udp
    }

    /// Reads a vnet header and a frame; `WouldBlock` when there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.file, buffer)?)
    }

    /// Writes a vnet header and a frame.
    pub fn write(&self, buffer: &[u8]) -> io::Result<()> {
        nix::unistd::write(&self.file, buffer)?;
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl TapHold {
    /// Leaves the device as it is: it stays.
    pub fn leave(&mut self) {
        self.is_left = true;
    }
}

impl Drop for TapHold {
    fn drop(&mut self) {
        if !self.is_left
            && let Err(error) = set_persistent(&self.file, false)
        {
            tracing::warn!("the TAP stays behind, `tincan cleanup` removes it: {error:#}");
        }
    }
}

/// Opens the device of this name, which is made if there is none; tells whether it segments UDP.
fn open(name: &str) -> anyhow::Result<(OwnedFd, bool)> {
    let mut configuration = tun::Configuration::default();
    configuration.tun_name(name).layer(tun::Layer::L2).platform_config(|platform| {
        // Without this the crate would set addresses; that is the netlink edge's.
        platform.ensure_root_privileges(false).vnet_hdr(true);
    });
    let device = match tun::create(&configuration) {
        Err(tun::Error::Io(error)) if error.raw_os_error() == Some(libc::EBUSY) => {
            return Err(InUse(name.to_owned()).into());
        }
        other => other.with_context(|| {
            format!(
                "cannot make the TAP {name}: this needs CAP_NET_ADMIN (run as root) and /dev/net/tun (modprobe tun)"
            )
        })?,
    };
    device.set_nonblock().context("cannot make the TAP non-blocking")?;
    // SAFETY: `into_raw_fd` gives up ownership of an open descriptor, so it has exactly one owner again.
    let file = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
    let segments_udp = offload(&file).context("cannot set the TAP's offloads")?;
    Ok((file, segments_udp))
}

/// Asks for all segmentation this kernel has; tells whether UDP's is among it.
fn offload(file: &OwnedFd) -> io::Result<bool> {
    let tcp = CHECKSUM | TSO4 | TSO6 | TSO_ECN;
    for (flags, udp) in [(tcp | USO4 | USO6, true), (tcp, false)] {
        let flags = libc::c_int::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open and a TAP's; this request takes its argument by value.
        match unsafe { set_offload(file.as_raw_fd(), flags) } {
            Ok(_) => return Ok(udp),
            Err(nix::Error::EINVAL) if udp => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// Whether the device stays when nobody holds it.
fn set_persistent(file: &OwnedFd, stays: bool) -> anyhow::Result<()> {
    // SAFETY: the descriptor is open and a TAP's; this request takes its argument by value.
    unsafe { set_persist(file.as_raw_fd(), libc::c_int::from(stays)) }.context("cannot set whether the TAP stays")?;
    Ok(())
}

/// Gives the device an address of its own. One that was set stays: udev replaces only those the kernel made up
/// (`addr_assign_type`, systemd.link(5) `MACAddressPolicy`), and frames are written to this one.
fn set_mac(file: &OwnedFd) -> anyhow::Result<[u8; 6]> {
    let mut mac = [0; 6];
    getrandom::fill(&mut mac).map_err(|error| anyhow::anyhow!("the kernel gives no random numbers: {error}"))?;
    // Locally administered, not a group (IEEE 802).
    mac[0] = mac[0] & 0xfc | 0x02;
    let mut hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
    for (to, from) in hwaddr.sa_data.iter_mut().zip(mac) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let request =
        libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_hwaddr: hwaddr } };
    // SAFETY: the descriptor is open and a TAP's, which this request addresses whatever the name; it reads `request` only.
    unsafe { set_hwaddr(file.as_raw_fd(), &raw const request) }?;
    Ok(mac)
}

/// The address the device has.
fn mac_of(file: &OwnedFd) -> anyhow::Result<[u8; 6]> {
    let hwaddr = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
    let mut request =
        libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_hwaddr: hwaddr } };
    // SAFETY: the descriptor is open and a TAP's, which this request addresses whatever the name; it writes an address
    // into `request`, the member read below.
    let found = unsafe {
        get_hwaddr(file.as_raw_fd(), &raw mut request)?;
        request.ifr_ifru.ifru_hwaddr.sa_data
    };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(found) {
        [*to] = from.to_ne_bytes();
    }
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network namespace of this thread only, so that the TAP meets nothing of the host.
    fn in_own_namespace<R: Send>(body: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
                    body()
                })
                .join()
                .unwrap()
        })
    }

    #[test]
    fn a_tap_is_made_once_and_goes_when_dropped() {
        in_own_namespace(|| {
            let tap = Tap::create("tincan-t0").unwrap();
            let listed = nix::ifaddrs::getifaddrs().unwrap().find(|device| device.interface_name == "tincan-t0");
            let listed = listed.and_then(|device| device.address?.as_link_addr()?.addr());
            assert_eq!(listed, Some(tap.mac()));
            assert_eq!(tap.mac()[0] & 3, 2, "locally administered, not a group");
            assert!(tap.segments_udp(), "this kernel is newer than 6.2");
            let refusal = Tap::create("tincan-t0").unwrap_err().to_string();
            assert!(refusal.contains("exists already"), "{refusal}");
            drop(tap);
            assert!(if_nametoindex("tincan-t0").is_err());
        });
    }

    #[test]
    fn a_held_tap_stays_with_its_address_and_is_taken_over_only_once() {
        in_own_namespace(|| {
            let tap = Tap::create("tincan-t2").unwrap();
            let (index, mac) = (tap.index(), tap.mac());
            tap.hold().unwrap().leave();
            let refusal = Tap::adopt("tincan-t2").unwrap_err().to_string();
            assert!(refusal.contains("is in use"), "{refusal}");
            drop(tap);
            let tap = Tap::adopt("tincan-t2").unwrap();
            assert_eq!((tap.index(), tap.mac()), (index, mac));
            assert!(tap.segments_udp());
            drop(tap.hold().unwrap());
            drop(tap);
            assert!(if_nametoindex("tincan-t2").is_err(), "a hold that was dropped is none");
        });
    }

    #[test]
    fn nothing_to_read_is_would_block() {
        in_own_namespace(|| {
            let tap = Tap::create("tincan-t1").unwrap();
            let error = tap.read(&mut [0; 2000]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        });
    }
}

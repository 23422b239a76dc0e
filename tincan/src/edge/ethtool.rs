//! Offload features of network devices (`SIOCETHTOOL`, `linux/ethtool.h`).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use anyhow::{Context, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// Is generic receive offload on?
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
/// All kinds of TCP segmentation offload.
const ETHTOOL_STSO: u32 = 0x1f;

nix::ioctl_readwrite_bad!(ethtool, SIOCETHTOOL, libc::ifreq);

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether the device merges what it receives (GRO).
pub fn merges(device: &str) -> anyhow::Result<bool> {
    let value = ask(device, ETHTOOL_GGRO, 0).with_context(|| format!("cannot read the offloads of {device}"))?;
    Ok(value != 0)
}

/// Switches merging on receive.
pub fn set_merging(device: &str, is_on: bool) -> anyhow::Result<()> {
    ask(device, ETHTOOL_SGRO, is_on.into()).with_context(|| format!("cannot switch GRO of {device}"))?;
    Ok(())
}

/// Switches the cutting of TCP super-frames by the device.
pub fn set_tcp_segmentation(device: &str, is_on: bool) -> anyhow::Result<()> {
    ask(device, ETHTOOL_STSO, is_on.into()).with_context(|| format!("cannot switch TSO of {device}"))?;
    Ok(())
}

fn ask(device: &str, command: u32, data: u32) -> anyhow::Result<u32> {
    ensure!(device.len() < libc::IFNAMSIZ, "{device} is no name of a device");
    let any: OwnedFd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command, data };
    // SAFETY: an `ifreq` is plain data of which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = ptr::from_mut(&mut value).cast();
    // SAFETY: the request names a device and points to a `struct ethtool_value` that outlives the call, which is what
    // these three commands read and write.
    unsafe { ethtool(any.as_raw_fd(), &raw mut request) }.map_err(io::Error::from)?;
    Ok(value.data)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn features_are_switched_and_read_back() {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let made = Command::new("ip").args("link add near type veth peer name far".split(' ')).status().unwrap();
            assert!(made.success());
            for is_on in [true, false, true] {
                set_merging("far", is_on).unwrap();
                assert_eq!(merges("far").unwrap(), is_on);
                set_tcp_segmentation("near", is_on).unwrap();
                let output = Command::new("ethtool").args(["-k", "near"]).output().unwrap();
                let text = String::from_utf8(output.stdout).unwrap();
                let word = if is_on { "on" } else { "off" };
                assert!(text.contains(&format!("tx-tcp-segmentation: {word}")), "{text}");
            }
            let error = format!("{:#}", merges("nowhere").unwrap_err());
            assert!(error.contains("nowhere") && error.contains("No such device"), "{error}");
            assert!(merges("a-name-that-is-too-long").is_err());
        };
        thread::spawn(run).join().unwrap();
    }
}

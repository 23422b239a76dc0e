//! The kernel engine: loads the programs of `tincan-ebpf`, attaches them to the TAP and the uplinks, fills their maps.
//!
//! [`KernelEngine`] is the programs and maps; [`forwarder::Forwarder`] decides which links have entries. Dropping the
//! engine detaches and unloads everything it put into the kernel. It never touches `lo`.

mod failure;
pub mod forwarder;
mod object;

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, ProgramInfo, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use nix::net::if_::{if_indextoname, if_nametoindex};
use tincan_common::entries::{
    self, Address, FLOWS, Flow, MAX_OWN_ADDRESSES, OWN_ADDRESSES, ROUTES4, ROUTES6, RawTraffic, Receiver, SETTINGS,
    Sender, Settings, TRAFFIC, VERDICTS,
};
use tincan_common::kernel_verdict::KernelVerdict;

/// The program on the TAP's egress.
const TAP_EGRESS: &str = "tap_egress";
/// The program on the uplinks' ingress.
const UPLINK_INGRESS: &str = "uplink_ingress";
/// The programs on the uplinks that translate the plain port.
const PORT_INGRESS: &str = "port_ingress";
const PORT_EGRESS: &str = "port_egress";
/// The program on the ingress of helper devices.
const CHECKED_INGRESS: &str = "checked_ingress";

const PROGRAMS: [&str; 5] = [TAP_EGRESS, UPLINK_INGRESS, PORT_INGRESS, PORT_EGRESS, CHECKED_INGRESS];

/// The loopback device has this index in every network namespace (`LOOPBACK_IFINDEX` in the kernel).
const LOOPBACK_INDEX: u32 = 1;

/// The loaded programs, their maps and what they are attached to.
pub struct KernelEngine {
    ebpf: Ebpf,
    settings: Array<MapData, [u8; Settings::SIZE]>,
    routes4: HashMap<MapData, [u8; 4], [u8; Sender::SIZE]>,
    routes6: HashMap<MapData, Address, [u8; Sender::SIZE]>,
    flows: HashMap<MapData, [u8; Flow::SIZE], [u8; Receiver::SIZE]>,
    traffic: PerCpuArray<MapData, RawTraffic>,
    verdicts: PerCpuArray<MapData, u64>,
    own_addresses: HashMap<MapData, Address, u8>,
    uplinks: BTreeSet<u32>,
}

/// What the kernel says about one loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramReport {
    /// The program's name in the object.
    pub name: String,
    /// Instructions the verifier walked through; `None` before Linux 5.16.
    pub verified_instructions: Option<u32>,
    /// Bytes of machine code; 0 where the kernel does not compile programs.
    pub machine_code_bytes: u32,
}

impl KernelEngine {
    /// Loads the programs into the kernel without attaching them; the error's first line says what is missing.
    pub fn load() -> anyhow::Result<Self> {
        let Some(object) = object::OBJECT else {
            bail!("built without the kernel engine: run `cargo xtask setup` and build again");
        };
        let mut ebpf = EbpfLoader::new().load(object).map_err(|error| failure::explain(error, "load the maps"))?;
        for name in PROGRAMS {
            program(&mut ebpf, name)?.load().map_err(|error| failure::explain(error, "load the programs"))?;
        }
        let mut map = |name: &str| ebpf.take_map(name).with_context(|| format!("the object has no map {name}"));
        let settings = Array::try_from(map(SETTINGS)?).context("map settings")?;
        let routes4 = HashMap::try_from(map(ROUTES4)?).context("map routes4")?;
        let routes6 = HashMap::try_from(map(ROUTES6)?).context("map routes6")?;
        let flows = HashMap::try_from(map(FLOWS)?).context("map flows")?;
        let traffic = PerCpuArray::try_from(map(TRAFFIC)?).context("map traffic")?;
        let verdicts = PerCpuArray::try_from(map(VERDICTS)?).context("map verdicts")?;
        let own_addresses = HashMap::try_from(map(OWN_ADDRESSES)?).context("map own_addresses")?;
        let uplinks = BTreeSet::new();
        Ok(Self { ebpf, settings, routes4, routes6, flows, traffic, verdicts, own_addresses, uplinks })
    }

    /// Attaches `tap_egress` behind the other programs of this interface (TCX, Linux 6.6).
    pub fn attach_tap(&mut self, interface: &str) -> anyhow::Result<()> {
        self.attach(TAP_EGRESS, interface, TcAttachType::Egress)
    }

    /// Attaches what belongs on an uplink to an interface by its index; once is enough.
    pub fn attach_uplink(&mut self, index: u32) -> anyhow::Result<()> {
        if self.uplinks.contains(&index) {
            return Ok(());
        }
        let name = interface_name(index)?;
        // In this order: what the first does not carry, the second hands to the socket.
        self.attach(UPLINK_INGRESS, &name, TcAttachType::Ingress)?;
        self.attach(PORT_INGRESS, &name, TcAttachType::Ingress)?;
        self.attach(PORT_EGRESS, &name, TcAttachType::Egress)?;
        self.uplinks.insert(index);
        Ok(())
    }

    /// Attaches the guard to a helper device, which must be down until then.
    pub fn attach_helper(&mut self, index: u32) -> anyhow::Result<()> {
        self.attach(CHECKED_INGRESS, &interface_name(index)?, TcAttachType::Ingress)
    }

    fn attach(&mut self, name: &str, interface: &str, side: TcAttachType) -> anyhow::Result<()> {
        let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
        ensure!(index != LOOPBACK_INDEX, "refusing to attach to the loopback device {interface}");
        program(&mut self.ebpf, name)?
            .attach_with_options(interface, side, TcAttachOptions::TcxOrder(LinkOrder::last()))
            .map_err(|error| failure::explain(error, &format!("attach to {interface} by TCX")))?;
        Ok(())
    }

    /// What every frame needs; before the first call the programs pass everything.
    pub fn configure(&mut self, settings: &Settings) -> anyhow::Result<()> {
        self.settings.set(0, settings.to_bytes(), 0).context("write the settings")
    }

    /// Datagrams of this flow are taken as this receiver says.
    pub fn set_flow(&mut self, flow: &Flow, receiver: &Receiver) -> anyhow::Result<()> {
        self.flows.insert(flow.to_bytes(), receiver.to_bytes(), 0).context("write a flow")
    }

    /// Frames for this inner address, cut to the router mask, are sent so.
    pub fn set_route4(&mut self, destination: [u8; 4], sender: &Sender) -> anyhow::Result<()> {
        self.routes4.insert(destination, sender.to_bytes(), 0).context("write an IPv4 route")
    }

    /// The same for IPv6.
    pub fn set_route6(&mut self, destination: Address, sender: &Sender) -> anyhow::Result<()> {
        self.routes6.insert(destination, sender.to_bytes(), 0).context("write an IPv6 route")
    }

    /// The host's own addresses on the underlay, at most [`MAX_OWN_ADDRESSES`]; those of before are forgotten.
    pub fn set_own_addresses(&mut self, wanted: &BTreeSet<Address>) -> anyhow::Result<()> {
        let before: BTreeSet<Address> =
            self.own_addresses.keys().collect::<Result<_, _>>().context("list addresses")?;
        for gone in before.difference(wanted) {
            self.own_addresses.remove(gone).context("remove an own address")?;
        }
        let room = (MAX_OWN_ADDRESSES as usize).saturating_sub(before.intersection(wanted).count());
        for new in wanted.difference(&before).take(room) {
            self.own_addresses.insert(new, 1, 0).context("write an own address")?;
        }
        Ok(())
    }

    /// Takes entries back; those that are not there are no error.
    pub fn remove(&mut self, destination4: [u8; 4], destination6: &Address, flow: &Flow) {
        let gone = [
            self.routes4.remove(&destination4).is_ok(),
            self.routes6.remove(destination6).is_ok(),
            self.flows.remove(&flow.to_bytes()).is_ok(),
        ];
        tracing::trace!(?gone, "entries withdrawn");
    }

    /// What a slot counted, summed over the CPUs.
    pub fn traffic(&self, slot: u32) -> anyhow::Result<RawTraffic> {
        let per_cpu = self.traffic.get(&slot, 0).with_context(|| format!("read the traffic of slot {slot}"))?;
        let mut sum = RawTraffic::default();
        for counted in per_cpu.iter() {
            for (total, more) in sum.iter_mut().zip(counted) {
                *total = total.wrapping_add(*more);
            }
        }
        Ok(sum)
    }

    /// Every verdict by name and how often it was given.
    pub fn verdicts(&self) -> anyhow::Result<Vec<(&'static str, u64)>> {
        let read = |verdict: KernelVerdict| {
            let per_cpu = self.verdicts.get(&verdict.index(), 0).context("read the verdicts")?;
            Ok((verdict.name(), per_cpu.iter().sum()))
        };
        KernelVerdict::ALL.into_iter().map(read).collect()
    }

    /// The size of each loaded program as the verifier and the compiler of this kernel saw it.
    pub fn reports(&self) -> anyhow::Result<Vec<ProgramReport>> {
        let report = |(name, program): (&str, &aya::programs::Program)| {
            let info: ProgramInfo = program.info().with_context(|| format!("ask the kernel about {name}"))?;
            Ok(ProgramReport {
                name: name.to_owned(),
                verified_instructions: info.verified_instruction_count(),
                machine_code_bytes: info.size_jitted(),
            })
        };
        self.ebpf.programs().map(report).collect()
    }
}

/// An IP address as entries have it.
fn address(ip: std::net::IpAddr) -> Address {
    match ip {
        std::net::IpAddr::V4(ip) => entries::mapped(ip.octets()),
        std::net::IpAddr::V6(ip) => ip.octets(),
    }
}

/// The name an interface has now.
pub fn interface_name(index: u32) -> anyhow::Result<String> {
    let name = if_indextoname(index).with_context(|| format!("no interface with index {index}"))?;
    let name = name.into_string().context("an interface's name that is no text")?;
    // The crate takes the null pointer of a missing interface for an empty name.
    ensure!(!name.is_empty(), "no interface with index {index}");
    Ok(name)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

#[cfg(test)]
mod tests;

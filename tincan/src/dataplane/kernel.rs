//! The kernel engine: loads the programs of `tincan-ebpf`, attaches them to the TAP and the uplinks, fills their maps.
//!
//! [`KernelEngine`] is the programs and maps; [`forwarder::Forwarder`] decides which links have entries. Dropping the
//! engine detaches and unloads everything it put into the kernel, unless it is pinned ([`pins`]) and told to stay. It never
//! touches `lo`.

pub mod adopted;
mod attach;
pub mod clsact;
mod failure;
pub mod forwarder;
mod object;
pub mod pins;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::links::PinnedLink;
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use nix::net::if_::if_indextoname;
use tincan_common::entries::{
    self, Address, FLOWS, Flow, LEASE, MAX_FLOWS, MAX_OWN_ADDRESSES, MAX_ROUTES, MAX_SLOTS, OWN_ADDRESSES, ROUTES4,
    ROUTES6, RawTraffic, Receiver, SETTINGS, Sender, Settings, TRAFFIC, VERDICTS,
};
use tincan_common::kernel_verdict::KernelVerdict;

use self::adopted::Adopted;
use self::clsact::Filters;
use self::pins::Pins;

/// The program on the TAP's egress.
const TAP_EGRESS: &str = "tap_egress";
/// The program on the uplinks' ingress.
const UPLINK_INGRESS: &str = "uplink_ingress";
/// The programs on the uplinks that translate the plain port.
const PORT_INGRESS: &str = "port_ingress";
const PORT_EGRESS: &str = "port_egress";
/// The program on the ingress of helper devices.
const CHECKED_INGRESS: &str = "checked_ingress";
/// The program in the uplinks' drivers, and the one that takes its frames.
const UPLINK_XDP: &str = "uplink_xdp";
const STRIPPED_INGRESS: &str = "stripped_ingress";

/// Every program for TC, and the side of an interface it belongs on.
const PROGRAMS: [(&str, TcAttachType); 6] = [
    (TAP_EGRESS, TcAttachType::Egress),
    (UPLINK_INGRESS, TcAttachType::Ingress),
    (PORT_INGRESS, TcAttachType::Ingress),
    (PORT_EGRESS, TcAttachType::Egress),
    (CHECKED_INGRESS, TcAttachType::Ingress),
    (STRIPPED_INGRESS, TcAttachType::Ingress),
];
/// Those of an uplink, in this order: the first only where the driver has a program too; what the second does not carry,
/// the third hands to the socket.
const UPLINK_PROGRAMS: [&str; 4] = [STRIPPED_INGRESS, UPLINK_INGRESS, PORT_INGRESS, PORT_EGRESS];

/// Every map with the shape that `tincan-ebpf` gives it.
const MAPS: [MapShape; 8] = [
    MapShape::new(SETTINGS, 4, Settings::SIZE, 1),
    MapShape::new(ROUTES4, 4, Sender::SIZE, MAX_ROUTES),
    MapShape::new(ROUTES6, size_of::<Address>(), Sender::SIZE, MAX_ROUTES),
    MapShape::new(FLOWS, Flow::SIZE, Receiver::SIZE, MAX_FLOWS),
    MapShape::new(TRAFFIC, 4, size_of::<RawTraffic>(), MAX_SLOTS),
    MapShape::new(VERDICTS, 4, 8, KernelVerdict::COUNT),
    MapShape::new(OWN_ADDRESSES, size_of::<Address>(), 1, MAX_OWN_ADDRESSES),
    MapShape::new(LEASE, 4, 8, 1),
];

/// The loopback device has this index in every network namespace (`LOOPBACK_IFINDEX` in the kernel).
const LOOPBACK_INDEX: u32 = 1;

/// What a map must be to be gone on with: bytes of key and value, most entries.
struct MapShape {
    name: &'static str,
    key: u32,
    value: u32,
    entries: u32,
}

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
    lease: Array<MapData, u64>,
    /// What is attached, as program and interface; the pinned links among it, so that they hold even if a pin is removed.
    attached: BTreeMap<(&'static str, u32), Option<PinnedLink>>,
    /// Uplinks get a program in their driver too.
    in_driver: bool,
    /// Uplinks whose driver was asked.
    drivers: BTreeSet<u32>,
    /// How programs are attached where not by TCX.
    filters: Option<Filters>,
    pins: Option<Pins>,
}

/// How programs come onto interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As links of their own (Linux 6.6).
    Tcx,
    /// As filters of a clsact qdisc.
    Clsact,
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

impl MapShape {
    #[expect(clippy::cast_possible_truncation, reason = "sizes of a few bytes, known while compiling")]
    const fn new(name: &'static str, key: usize, value: usize, entries: u32) -> Self {
        Self { name, key: key as u32, value: value as u32, entries }
    }
}

impl KernelEngine {
    /// Loads the programs into the kernel without attaching them; the error's first line says what is missing. Everything
    /// goes with this value.
    pub fn load() -> anyhow::Result<Self> {
        Self::load_with(None)
    }

    /// The same with maps and links pinned. Maps that are there are gone on with, and the programs of links that are there
    /// are replaced without a gap. `in_driver`: see [`KernelEngine::prefer_driver`].
    pub fn load_pinned(pins: Pins, in_driver: bool, way: Way) -> anyhow::Result<Self> {
        let tap = pins.tap().to_owned();
        let mut engine = Self::load_with(Some(pins))?;
        if in_driver {
            engine.prefer_driver();
        }
        match way {
            Way::Tcx => {
                Filters::of(&tap, false).remove()?;
                engine.adopt_links()?;
            }
            Way::Clsact => {
                engine.end_links()?;
                engine.attach_by_clsact(&tap);
            }
        }
        Ok(engine)
    }

    fn load_with(pins: Option<Pins>) -> anyhow::Result<Self> {
        let Some(object) = object::OBJECT else {
            bail!("built without the kernel engine: run `cargo xtask setup` and build again");
        };
        let mut loader = EbpfLoader::new();
        if let Some(pins) = &pins {
            for shape in &MAPS {
                loader.map_pin_path(shape.name, pins.map(shape.name));
            }
        }
        let mut ebpf = loader.load(object).map_err(|error| failure::explain(error, "load the maps"))?;
        for (name, _) in PROGRAMS {
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
        let lease = Array::try_from(map(LEASE)?).context("map lease")?;
        Ok(Self {
            ebpf,
            settings,
            routes4,
            routes6,
            flows,
            traffic,
            verdicts,
            own_addresses,
            lease,
            attached: BTreeMap::new(),
            in_driver: false,
            drivers: BTreeSet::new(),
            filters: None,
            pins,
        })
    }

    /// From now on programs are attached as filters of clsact, for this TAP.
    pub fn attach_by_clsact(&mut self, tap: &str) {
        self.filters = Some(Filters::of(tap, self.pins.is_none()));
    }

    /// Whether they are.
    #[must_use]
    pub fn is_by_clsact(&self) -> bool {
        self.filters.is_some()
    }

    /// Whether maps and links can outlive this process.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// Whether they do, also after this value is dropped in order.
    pub fn set_staying(&mut self, stays: bool) {
        if let Some(pins) = &mut self.pins {
            pins.set_staying(stays);
        }
    }

    /// Until when the entries hold, nanoseconds of `CLOCK_MONOTONIC`; before the first call, and later, the programs pass
    /// everything.
    pub fn set_lease_end(&mut self, end: u64) -> anyhow::Result<()> {
        self.lease.set(0, end, 0).context("write the lease")
    }

    /// What [`KernelEngine::set_lease_end`] was given last.
    pub fn lease_end(&self) -> anyhow::Result<u64> {
        self.lease.get(&0, 0).context("read the lease")
    }

    /// What [`KernelEngine::configure`] was given last; defaults before.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        Ok(Settings::from_bytes(&self.settings.get(&0, 0).context("read the settings")?))
    }

    /// Every entry there is.
    pub fn entries(&self) -> anyhow::Result<Adopted> {
        let flows = self.flows.iter().map(|entry| entry.map(|(k, v)| (Flow::from_bytes(&k), Receiver::from_bytes(&v))));
        let routes4 = self.routes4.iter().map(|entry| entry.map(|(k, v)| (k, Sender::from_bytes(&v))));
        let routes6 = self.routes6.iter().map(|entry| entry.map(|(k, v)| (k, Sender::from_bytes(&v))));
        Ok(Adopted::new(
            flows.collect::<Result<_, _>>().context("list the flows")?,
            routes4.collect::<Result<_, _>>().context("list the IPv4 routes")?,
            routes6.collect::<Result<_, _>>().context("list the IPv6 routes")?,
        ))
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

    /// Takes a flow back; one that is not there is no error, here and below.
    pub fn remove_flow(&mut self, flow: &Flow) {
        let gone = self.flows.remove(&flow.to_bytes()).is_ok();
        tracing::trace!(gone, "flow withdrawn");
    }

    /// Takes an IPv4 route back.
    pub fn remove_route4(&mut self, destination: [u8; 4]) {
        let gone = self.routes4.remove(&destination).is_ok();
        tracing::trace!(gone, "IPv4 route withdrawn");
    }

    /// Takes an IPv6 route back.
    pub fn remove_route6(&mut self, destination: &Address) {
        let gone = self.routes6.remove(destination).is_ok();
        tracing::trace!(gone, "IPv6 route withdrawn");
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

    /// How long a TC program takes for one frame in the kernel's own test run (`BPF_PROG_TEST_RUN`): the median of `runs`.
    pub fn time_of(&mut self, name: &str, frame: &[u8], runs: usize) -> anyhow::Result<Duration> {
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            let mut options = TestRunOptions::new();
            options.data_in = Some(frame);
            let run = program(&mut self.ebpf, name)?.test_run(options);
            times.push(run.with_context(|| format!("the test run of {name}"))?.duration);
        }
        times.sort_unstable();
        times.get(runs / 2).copied().context("a median needs a run")
    }

    /// The size of each program that is loaded as the verifier and the compiler of this kernel saw it.
    pub fn reports(&self) -> anyhow::Result<Vec<ProgramReport>> {
        let report = |(name, program): (&str, &aya::programs::Program)| {
            let info: ProgramInfo = program.info().with_context(|| format!("ask the kernel about {name}"))?;
            Ok(ProgramReport {
                name: name.to_owned(),
                verified_instructions: info.verified_instruction_count(),
                machine_code_bytes: info.size_jitted(),
            })
        };
        self.ebpf.programs().filter(|(_, program)| program.fd().is_ok()).map(report).collect()
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
    let name = name.into_string().ok().context("an interface's name that is no text")?;
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

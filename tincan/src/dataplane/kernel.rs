//! The kernel engine: loads the programs of `tincan-ebpf`, attaches them to the TAP, reads what they count.
//!
//! Dropping the engine detaches and unloads everything it put into the kernel. It never touches `lo`.

mod failure;
mod object;

use anyhow::{Context as _, bail, ensure};
use aya::maps::PerCpuArray;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, ProgramInfo, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use nix::net::if_::if_nametoindex;
use tincan_common::counters::{FrameKind, RawTally, Tally};

/// The program on the TAP's egress.
const TAP_EGRESS: &str = "tap_egress";

/// The map the programs count in.
const FRAME_TALLIES: &str = "frame_tallies";

/// The loopback device has this index in every network namespace (`LOOPBACK_IFINDEX` in the kernel).
const LOOPBACK_INDEX: u32 = 1;

/// The loaded programs and what they are attached to.
#[derive(Debug)]
pub struct KernelEngine {
    ebpf: Ebpf,
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
        let mut engine =
            Self { ebpf: EbpfLoader::new().load(object).map_err(|error| failure::explain(error, "load the maps"))? };
        engine.tap_egress()?.load().map_err(|error| failure::explain(error, "load the program"))?;
        Ok(engine)
    }

    /// Attaches `tap_egress` behind the other programs of this interface (TCX, Linux 6.6).
    pub fn attach(&mut self, interface: &str) -> anyhow::Result<()> {
        let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
        ensure!(index != LOOPBACK_INDEX, "refusing to attach to the loopback device {interface}");
        self.tap_egress()?
            .attach_with_options(interface, TcAttachType::Egress, TcAttachOptions::TcxOrder(LinkOrder::last()))
            .map_err(|error| failure::explain(error, "attach to the TAP by TCX"))?;
        Ok(())
    }

    /// Frames that left through the TAP since the engine was loaded, per kind, summed over the CPUs.
    pub fn counters(&self) -> anyhow::Result<Vec<(FrameKind, Tally)>> {
        let map = self.ebpf.map(FRAME_TALLIES).with_context(|| format!("the object has no map {FRAME_TALLIES}"))?;
        let tallies = PerCpuArray::<_, RawTally>::try_from(map).context("read the frame counters")?;
        FrameKind::ALL
            .into_iter()
            .map(|kind| {
                let per_cpu = tallies.get(&kind.index(), 0).with_context(|| format!("read counter {}", kind.name()))?;
                Ok((kind, Tally::sum(per_cpu.iter())))
            })
            .collect()
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

    fn tap_egress(&mut self) -> anyhow::Result<&mut SchedClassifier> {
        let program = self.ebpf.program_mut(TAP_EGRESS).with_context(|| format!("the object has no {TAP_EGRESS}"))?;
        Ok(program.try_into()?)
    }
}

#[cfg(test)]
mod tests;

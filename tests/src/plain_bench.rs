//! The comparison of `cargo xtask bench plain`: plain links against a bare veth and against kernel VXLAN.
//!
//! ```text
//!   near ---- veth, MTU 1500 ---- far    raw, and a stock VXLAN device over it
//!   near ---- veth, MTU 1500 ---- far    two daemons, kernel engine
//!   near ---- veth, MTU 1500 ---- far    two daemons, user-space engine
//! ```
//!
//! The pairs are apart, so that nothing of one design is in the way of another; they take turns within each round.
//! Figures depend on the machine and on what else it does: only ratios within one run mean anything.

mod designs;
mod measure;
mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use designs::Bench;
use measure::{Figures, measure};
use report::Report;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Design {
    /// The bare veth.
    Raw,
    /// The kernel's VXLAN device, point to point.
    Vxlan,
    /// A plain link in the kernel engine.
    Kernel,
    /// A plain link in the user-space engine.
    User,
    /// The bare veth again, where daemons with a link in the kernel engine have their programs: traffic that is not theirs.
    Beside,
}

impl Design {
    /// As reports write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vxlan => "vxlan",
            Self::Kernel => "tincan_kernel",
            Self::User => "tincan_user",
            Self::Beside => "beside_tincan",
        }
    }
}

/// Offloads of the underlay's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Setting {
    /// As a veth is made: super-frames cross whole, nothing is merged on receive.
    Default,
    /// Like a network card without any offload.
    Off,
    /// Like an ordinary network card: single packets, merged by software on receive.
    Gro,
}

impl Setting {
    /// As reports write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Off => "off",
            Self::Gro => "gro",
        }
    }

    /// Words for `ethtool -K`.
    fn features(self) -> &'static str {
        match self {
            Self::Default => {
                "tso on gso on tx-udp_tnl-segmentation on tx-udp_tnl-csum-segmentation on tx-udp-segmentation on gro off"
            }
            Self::Off => {
                "tso off gso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off tx-udp-segmentation off \
                 gro off"
            }
            Self::Gro => {
                "tso off gso off tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off tx-udp-segmentation off \
                 gro on"
            }
        }
    }
}

/// What the comparison is told.
#[derive(Clone, Debug)]
pub struct Options {
    pub settings: Vec<Setting>,
    pub designs: Vec<Design>,
    pub rounds: u32,
    /// Of each measurement.
    pub length: Duration,
    /// The table becomes one JSON object.
    pub json: bool,
}

/// Runs the comparison and prints it.
///
/// # Errors
/// When something cannot be set up, a link is not on the engine it should be on, or at Ctrl-C.
pub fn run(options: &Options) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, stop.clone()).context("watching for signals")?;
    }
    let bench = Bench::new(&options.designs)?;
    let mut report = Report::default();
    for setting in &options.settings {
        bench.set(*setting)?;
        for round in 1..=options.rounds {
            for design in &options.designs {
                if stop.load(Ordering::Relaxed) {
                    bail!("interrupted");
                }
                let figures: Figures = measure(&bench.path(*design)?, options.length)
                    .with_context(|| format!("{}, {}", setting.name(), design.name()))?;
                eprintln!("{}, round {round} of {}, {}: {figures}", setting.name(), options.rounds, design.name());
                report.add(*setting, *design, figures);
            }
        }
        bench.check_engines()?;
    }
    if options.json {
        println!("{}", report.json());
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

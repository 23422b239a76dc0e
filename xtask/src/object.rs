//! Builds the kernel programs' object with the toolchain that `cargo xtask setup` recorded.
//!
//! Shared by xtask and the build script of the `tincan` crate, which includes this file: standard library only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the record stands, from the workspace's root. Not in git: it describes one machine.
pub const RECORD: &str = "target/ebpf-toolchain";

/// The target of the kernel programs (little-endian BPF).
const TARGET: &str = "bpfel-unknown-none";

/// Variables of an outer cargo or rustup that would change which compiler runs, or how.
const OUTER_VARIABLES: [&str; 12] = [
    "CARGO",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_MAKEFLAGS",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A compiler for the kernel programs: absolute paths of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// The cargo that understands `-Z build-std`.
    pub cargo: PathBuf,
    /// The compiler, with the source of `core` in its sysroot.
    pub rustc: PathBuf,
    /// bpf-linker, built against an LLVM not older than the compiler's.
    pub linker: PathBuf,
}

impl Toolchain {
    /// The recorded toolchain, `None` where setup has not run or a recorded file is gone.
    pub fn recorded(workspace: &Path) -> Option<Self> {
        let record = fs::read_to_string(workspace.join(RECORD)).ok()?;
        let part = |name: &str| {
            let path = record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            Some(PathBuf::from(path)).filter(|path| path.is_file())
        };
        Some(Self { cargo: part("cargo")?, rustc: part("rustc")?, linker: part("linker")? })
    }

    /// Compiles `tincan-ebpf` (about 40 s the first time) and returns the object's path; the error is cargo's output.
    pub fn build(&self, workspace: &Path) -> Result<PathBuf, String> {
        let mut command = self.command(workspace);
        let output = command.output().map_err(|error| format!("cannot run {}: {error}", self.cargo.display()))?;
        if output.status.success() {
            Ok(target_dir(workspace).join(TARGET).join("release/tincan-ebpf"))
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// The cargo that compiles `tincan-ebpf`.
    pub fn command(&self, workspace: &Path) -> Command {
        let Self { cargo, rustc, linker } = self;
        let mut command = Command::new(cargo);
        for variable in OUTER_VARIABLES {
            command.env_remove(variable);
        }
        let arch = std::env::consts::ARCH;
        let flags = ["-Cdebuginfo=2", "-Clink-arg=--btf", &format!("--cfg=bpf_target_arch=\"{arch}\"")].join("\x1f");
        command
            .args(["build", "--release", "-Zbuild-std=core", "--target", TARGET, "--target-dir"])
            .arg(target_dir(workspace))
            .current_dir(workspace.join("tincan-ebpf"))
            .env("RUSTC", rustc)
            // Distribution compilers are stable ones; build-std needs the unstable flags in rustc and cargo.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
            .env("CARGO_ENCODED_RUSTFLAGS", flags);
        command
    }
}

fn target_dir(workspace: &Path) -> PathBuf {
    workspace.join("target/ebpf")
}

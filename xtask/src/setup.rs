//! `setup`: what building and testing need, found or installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::object::{RECORD, Toolchain};
use crate::{packages, shell};

/// The linker of the kernel programs, in a version that was tried.
const BPF_LINKER_VERSION: &str = "0.13.0";

/// Debian's newer compiler with the source of `core` (bookworm-security, trixie-security).
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// LLVM versions that version of bpf-linker can be built with.
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// A compiler that can build the kernel programs, without a linker yet.
struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    llvm: u32,
}

/// Finds or installs everything; with `dry_run`, only tells. What cannot be had of the kernel programs' toolchain is told
/// loudly and is no error: the daemon then works without its kernel engine.
pub fn setup(workspace: &Path, dry_run: bool) -> anyhow::Result<()> {
    let wanted = packages::BUILD.into_iter().chain(packages::TEST);
    if !packages::has_apt() {
        return setup_elsewhere(workspace, &wanted.collect::<Vec<_>>());
    }
    let missing = packages::missing(wanted);
    if !missing.is_empty() {
        obtain(&missing, dry_run)?;
    }
    if dry_run {
        match Toolchain::recorded(workspace) {
            Some(toolchain) => println!("setup: the kernel programs' toolchain is {}", toolchain.cargo.display()),
            None => println!("setup: missing: a toolchain for the kernel programs"),
        }
        return Ok(());
    }
    if Toolchain::recorded(workspace).is_none() {
        match ebpf_toolchain() {
            Ok(toolchain) => record(workspace, &toolchain)?,
            Err(error) => println!("{}", without_kernel_engine(&error)),
        }
    }
    Ok(())
}

fn without_kernel_engine(error: &anyhow::Error) -> String {
    format!(
        "setup: NO TOOLCHAIN FOR THE KERNEL PROGRAMS: {error:#}\n\
         setup: tincan is built without its kernel engine; everything else works"
    )
}

/// Installs packages, or says how.
fn obtain(missing: &[String], dry_run: bool) -> anyhow::Result<()> {
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if dry_run {
        println!("setup: missing packages: {}", missing.join(" "));
        return Ok(());
    }
    if !shell::is_root() {
        bail!("packages are missing; run this as root, or let someone who may run\n    {by_hand}");
    }
    packages::install(missing).with_context(|| format!("try it by hand: {by_hand}"))
}

/// On other distributions: check for the programs and tell the packages by Debian's names.
fn setup_elsewhere(workspace: &Path, packages: &[&str]) -> anyhow::Result<()> {
    let programs = ["cc", "c++", "cmake", "clang", "git", "ip", "nft", "turnserver", "iperf3", "sysctl", "ethtool"];
    let missing: Vec<&str> = programs.into_iter().filter(|program| shell::find(program).is_none()).collect();
    if !missing.is_empty() {
        bail!(
            "programs are missing: {}\nThis is neither Debian nor Ubuntu: install what Debian calls\n    {}\n    and, for \
             the kernel programs, a nightly Rust with rust-src and bpf-linker {BPF_LINKER_VERSION}",
            missing.join(" "),
            packages.join(" ")
        );
    }
    if Toolchain::recorded(workspace).is_none() {
        match ebpf_toolchain() {
            Ok(toolchain) => record(workspace, &toolchain)?,
            Err(error) => println!("{}", without_kernel_engine(&error)),
        }
    }
    Ok(())
}

/// The compiler and linker of the kernel programs, found or installed.
fn ebpf_toolchain() -> anyhow::Result<Toolchain> {
    let compiler = match nightly_compiler().or_else(distribution_compiler) {
        Some(compiler) => compiler,
        None => install_compiler()?,
    };
    println!("setup: kernel programs are compiled by {} (LLVM {})", compiler.rustc.display(), compiler.llvm);
    let linker = match shell::find("bpf-linker").filter(|linker| is_tried_version(linker)) {
        Some(linker) => linker,
        None => install_linker(&compiler)?,
    };
    Ok(Toolchain { cargo: compiler.cargo, rustc: compiler.rustc, linker })
}

/// rustup's nightly, if it has the source of `core`.
fn nightly_compiler() -> Option<Compiler> {
    shell::find("rustup")?;
    let sysroot = shell::output(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
    let bin = Path::new(&sysroot).join("bin");
    compiler_at(bin.join("cargo"), bin.join("rustc"))
}

/// The distribution's own compiler, if it has the source of `core`.
fn distribution_compiler() -> Option<Compiler> {
    compiler_at(PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"))
}

fn compiler_at(cargo: PathBuf, rustc: PathBuf) -> Option<Compiler> {
    let sysroot = shell::output(Command::new(&rustc).args(["--print", "sysroot"]))?;
    let core = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    let llvm = llvm_version(&shell::output(Command::new(&rustc).arg("-vV"))?)?;
    // An older compiler than that cannot build aya-ebpf, nor be matched by the linker.
    (core.is_file() && cargo.is_file() && LINKER_LLVM.contains(&llvm)).then_some(Compiler { cargo, rustc, llvm })
}

/// The major version in the line `LLVM version: 22.1.2` of `rustc -vV`.
fn llvm_version(verbose: &str) -> Option<u32> {
    verbose.lines().find_map(|line| line.strip_prefix("LLVM version: "))?.split('.').next()?.parse().ok()
}

fn install_compiler() -> anyhow::Result<Compiler> {
    let may_install = shell::is_root() && packages::has_apt();
    if may_install {
        packages::update()?;
    }
    if may_install && DEBIAN_COMPILER.iter().all(|package| packages::is_available(package)) {
        packages::install(&DEBIAN_COMPILER.map(str::to_owned))?;
        if let Some(compiler) = distribution_compiler() {
            return Ok(compiler);
        }
        println!("setup: this release's {} is too old for the kernel programs", DEBIAN_COMPILER[0]);
    }
    if shell::find("rustup").is_some() {
        println!("setup: fetching a nightly Rust with the source of core");
        let arguments = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
        shell::run(Command::new("rustup").args(arguments))?;
        return nightly_compiler().context("the nightly Rust is there but cannot be used: is its LLVM too new?");
    }
    bail!("install rustup (https://rustup.rs), then: rustup toolchain install nightly --component rust-src")
}

fn is_tried_version(linker: &Path) -> bool {
    let version = shell::output(Command::new(linker).arg("--version"));
    version.is_some_and(|version| version == format!("bpf-linker {BPF_LINKER_VERSION}"))
}

/// Builds the linker against the compiler's LLVM (about two minutes).
fn install_linker(compiler: &Compiler) -> anyhow::Result<PathBuf> {
    let llvm = compiler.llvm;
    let library = format!("llvm-{llvm}-dev");
    if packages::has_apt() {
        let missing = packages::missing([library.as_str()]);
        if !missing.is_empty() && shell::is_root() {
            packages::update()?;
            if packages::is_available(&library) {
                packages::install(&missing)?;
            }
        }
    }
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if !Path::new(&prefix).join("bin/llvm-config").exists() {
        bail!("bpf-linker needs the libraries of LLVM {llvm}: install {library} (see https://apt.llvm.org)");
    }
    println!("setup: building bpf-linker {BPF_LINKER_VERSION}, about two minutes");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["install", "--quiet", "--locked", "bpf-linker", "--version", BPF_LINKER_VERSION])
        .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
        .env("LLVM_PREFIX", &prefix)
        // Not into this workspace's own target directory settings.
        .current_dir("/");
    shell::run(&mut command).context("bpf-linker could not be built")?;
    shell::find("bpf-linker").context("bpf-linker was built but is not in cargo's directory of binaries")
}

fn record(workspace: &Path, toolchain: &Toolchain) -> anyhow::Result<()> {
    let Toolchain { cargo, rustc, linker } = toolchain;
    let text = format!("cargo={}\nrustc={}\nlinker={}\n", cargo.display(), rustc.display(), linker.display());
    fs::create_dir_all(workspace.join("target"))?;
    fs::write(workspace.join(RECORD), text).with_context(|| format!("cannot write {RECORD}"))?;
    println!("setup: ready");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_of_a_compiler_is_read() {
        assert_eq!(llvm_version("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8"), Some(22));
        assert_eq!(llvm_version("rustc 1.96.0"), None);
    }
}

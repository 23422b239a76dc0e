//! The kernel programs' toolchain: the ways to get one, and the next step on the way. `object` uses what is found here.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::object::Toolchain;
use crate::{packages, shell};

/// The linker of the kernel programs, in a version that was tried.
const LINKER_VERSION: &str = "0.13.0";
/// LLVM versions that version of bpf-linker can be built with.
const LINKER_LLVM: RangeInclusive<u32> = 21..=23;

/// Packages of a compiler, its cargo and the source of `core`: Debian's newer one (in the security archive of bookworm
/// and trixie), then the usual one of Debian and Ubuntu.
const PACKAGES: [[&str; 3]; 2] = [["rustc-web", "cargo-web", "rust-web-src"], ["rustc", "cargo", "rust-src"]];
/// The first Rust 1.x with LLVM 21.
const OLDEST_RUST: u32 = 91;

/// A compiler that can build the kernel programs, without a linker yet.
#[derive(Debug)]
pub struct Compiler {
    cargo: PathBuf,
    rustc: PathBuf,
    /// Major version.
    llvm: u32,
}

/// The next step to a toolchain.
#[derive(Debug)]
pub enum Step {
    /// None: it is there.
    Use(Toolchain),
    BuildLinker(Compiler),
    InstallPackages([&'static str; 3]),
    InstallNightly,
}

/// The step that leads on from what is here; the error says what a person has to do.
pub fn next_step() -> anyhow::Result<Step> {
    let compilers: Vec<Compiler> = [nightly_compiler(), distribution_compiler()].into_iter().flatten().collect();
    if let Some(toolchain) = compilers.iter().find_map(with_linker) {
        return Ok(Step::Use(toolchain));
    }
    let has_compiler = !compilers.is_empty();
    if let Some(compiler) = compilers.into_iter().find(can_build_linker) {
        return Ok(Step::BuildLinker(compiler));
    }
    if let Some(packages) = PACKAGES.into_iter().find(can_install) {
        return Ok(Step::InstallPackages(packages));
    }
    if !has_compiler && shell::find("rustup").is_some() {
        return Ok(Step::InstallNightly);
    }
    bail!("{}", by_hand())
}

/// What to install where setup cannot.
pub fn by_hand() -> String {
    format!(
        "a Rust compiler with the source of `core`: on Debian {} (security archive), elsewhere, with rustup, \
         `rustup toolchain install nightly --component rust-src`; \
         the LLVM libraries of its LLVM version ({} to {}), on Debian and Ubuntu llvm-22-dev, say; \
         bpf-linker {LINKER_VERSION}, which setup builds when these two are there",
        PACKAGES[0].join(" "),
        LINKER_LLVM.start(),
        LINKER_LLVM.end()
    )
}

/// Takes every step. Lists of packages must be fresh.
pub fn obtain() -> anyhow::Result<Toolchain> {
    // Packages, nightly where they do not do, linker, and the look at the result.
    for _ in 0..4 {
        let step = next_step()?;
        shell::say(&format!("the kernel programs' toolchain: {step}"));
        match step {
            Step::Use(toolchain) => return Ok(toolchain),
            Step::BuildLinker(compiler) => build_linker(&compiler)?,
            Step::InstallPackages(names) => packages::install(&names.map(str::to_owned))?,
            Step::InstallNightly => {
                let arguments = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
                shell::run(Command::new("rustup").args(arguments).stdout(std::io::stderr()))
                    .context("the nightly Rust could not be fetched: is there a network?")?;
            }
        }
    }
    bail!("what was installed cannot be used; needed are {}", by_hand())
}

/// Whether a recorded toolchain is still what it was: an upgrade can take the compiler's LLVM beyond the linker's.
pub fn is_sound(toolchain: &Toolchain) -> bool {
    let Toolchain { cargo, rustc, linker } = toolchain;
    compiler_at(cargo.clone(), rustc.clone()).is_some_and(|compiler| links(linker, compiler.llvm))
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Use(Toolchain { cargo: _, rustc, linker }) => {
                write!(f, "{} with {}", rustc.display(), linker.display())
            }
            Self::BuildLinker(Compiler { cargo: _, rustc, llvm }) => write!(
                f,
                "building bpf-linker {LINKER_VERSION} for {} (LLVM {llvm}), about two minutes",
                rustc.display()
            ),
            Self::InstallPackages(packages) => write!(f, "installing {}", packages.join(" ")),
            Self::InstallNightly => f.write_str("fetching a nightly Rust with the source of core"),
        }
    }
}

/// rustup's nightly, if it has the source of `core`.
fn nightly_compiler() -> Option<Compiler> {
    let rustup = shell::find("rustup")?;
    let sysroot = shell::output(Command::new(rustup).args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
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
    let llvm = major_after(&shell::output(Command::new(&rustc).arg("-vV"))?, "LLVM version: ")?;
    (core.is_file() && cargo.is_file() && LINKER_LLVM.contains(&llvm)).then_some(Compiler { cargo, rustc, llvm })
}

fn with_linker(compiler: &Compiler) -> Option<Toolchain> {
    let Compiler { cargo, rustc, llvm } = compiler;
    let linker = shell::find_all("bpf-linker").find(|linker| links(linker, *llvm))?;
    Some(Toolchain { cargo: cargo.clone(), rustc: rustc.clone(), linker })
}

/// Whether this is the tried bpf-linker, with an LLVM that reads what the compiler's writes.
fn links(linker: &Path, llvm: u32) -> bool {
    let version = shell::output(Command::new(linker).arg("--version"));
    if version.is_none_or(|version| version != format!("bpf-linker {LINKER_VERSION}")) {
        return false;
    }
    let libraries = shell::output(Command::new("ldd").arg(linker)).unwrap_or_default();
    // One with LLVM inside tells no version; the project's own releases have the newest.
    major_after(&libraries, "libLLVM.so.").is_none_or(|of_linker| of_linker >= llvm)
}

/// The number that follows the first `label`, up to its first dot.
fn major_after(text: &str, label: &str) -> Option<u32> {
    let version = text.split_once(label)?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn can_build_linker(compiler: &Compiler) -> bool {
    let Compiler { cargo: _, rustc: _, llvm } = compiler;
    llvm_prefix(*llvm).is_some() || (packages::may_install() && packages::candidate(&llvm_package(*llvm)).is_some())
}

fn llvm_package(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

/// Where this LLVM's libraries stand: in a directory of their own, or where `llvm-config` says.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let own = [format!("/usr/lib/llvm-{llvm}"), format!("/usr/lib64/llvm{llvm}")].map(PathBuf::from);
    let own = own.into_iter().find(|prefix| prefix.join("bin/llvm-config").exists());
    own.or_else(|| {
        let version = shell::output(Command::new("llvm-config").arg("--version"))?;
        let prefix = shell::output(Command::new("llvm-config").arg("--prefix"))?;
        version.starts_with(&format!("{llvm}.")).then_some(PathBuf::from(prefix))
    })
}

/// Whether the three packages can be had, are new enough, and not all of them are here in that version.
fn can_install(names: &[&'static str; 3]) -> bool {
    packages::may_install()
        && names.iter().any(|name| packages::can_change(name))
        && names.iter().all(|name| packages::candidate(name).as_deref().is_some_and(is_new_enough))
}

/// Whether a package version such as `1.96.0+dfsg1-1` is Rust 1.91 or newer. An epoch would be before a colon.
fn is_new_enough(version: &str) -> bool {
    let upstream = version.split_once(':').map_or(version, |(_, upstream)| upstream);
    major_after(upstream, "1.").is_some_and(|minor| upstream.starts_with("1.") && minor >= OLDEST_RUST)
}

/// Builds the linker against the compiler's LLVM (about two minutes).
fn build_linker(compiler: &Compiler) -> anyhow::Result<()> {
    let Compiler { cargo, rustc, llvm } = compiler;
    if llvm_prefix(*llvm).is_none() {
        packages::install(&[llvm_package(*llvm)])?;
    }
    let prefix = llvm_prefix(*llvm).with_context(|| format!("{} lacks llvm-config", llvm_package(*llvm)))?;
    let feature = format!("llvm-{llvm}");
    shell::run(
        // By the compiler it is for: the one that runs this program may be too old.
        Command::new(cargo)
            .args(["install", "--quiet", "--locked", "bpf-linker", "--version", LINKER_VERSION])
            .args(["--no-default-features", "--features", &feature])
            .current_dir("/")
            .env("RUSTC", rustc)
            .env("LLVM_PREFIX", prefix)
            .stdout(std::io::stderr()),
    )
    .context("bpf-linker could not be built: is there a network?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_version_of_a_compiler_and_of_a_linker_is_read() {
        assert_eq!(major_after("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8", "LLVM version: "), Some(22));
        assert_eq!(major_after("rustc 1.96.0", "LLVM version: "), None);
        assert_eq!(major_after("\tlibLLVM.so.22.1 => /usr/lib/libLLVM.so.22.1 (0x7f)", "libLLVM.so."), Some(22));
    }

    #[test]
    fn packages_of_an_old_compiler_are_not_chosen() {
        assert!(is_new_enough("1.96.0+dfsg1-1~deb12u2"));
        assert!(is_new_enough("2:1.91.1-1ubuntu1"));
        assert!(!is_new_enough("1.85.0+dfsg3-1~deb12u3"));
        assert!(!is_new_enough("0.66.0+ds1-1"));
    }
}

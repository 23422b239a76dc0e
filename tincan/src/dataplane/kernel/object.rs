//! The compiled kernel programs, where the build script could compile them.

/// The object's ELF image; `None` in a build without the eBPF toolchain.
#[cfg(kernel_object)]
pub const OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tincan-ebpf.o")));

/// The object's ELF image; `None` in a build without the eBPF toolchain.
#[cfg(not(kernel_object))]
pub const OBJECT: Option<&[u8]> = None;

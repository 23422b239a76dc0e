//! Says in one line why the kernel refused a program, a map or an attachment.

use std::error::Error;
use std::io;

use nix::errno::Errno;

/// `error` behind a line that names the failed step and its likely cause.
pub fn explain(error: impl Error + Send + Sync + 'static, step: &str) -> anyhow::Error {
    let cause = reason(&error);
    anyhow::Error::new(error).context(format!("the kernel engine cannot {step}: {cause}"))
}

/// The cause, by the system call's error number at the end of the chain.
fn reason(error: &(dyn Error + 'static)) -> &'static str {
    match system_error(error) {
        Some(Errno::EPERM | Errno::EACCES) => "not permitted (it needs CAP_BPF and CAP_NET_ADMIN, or root)",
        Some(Errno::ENOSYS) => "this kernel has no BPF (CONFIG_BPF_SYSCALL)",
        Some(Errno::EINVAL) => {
            "this kernel does not know the request (the kernel engine was tried on Linux 6.1 and newer)"
        }
        Some(Errno::ENOMEM) => "out of memory, or over RLIMIT_MEMLOCK",
        _ => "the kernel refused it",
    }
}

/// The number of the system call's error at the end of the chain.
pub fn system_error(error: &(dyn Error + 'static)) -> Option<Errno> {
    anyhow::Chain::new(error).find_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error()).map(Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map_refused_with(errno: Errno) -> aya::EbpfError {
        let io_error = io::Error::from_raw_os_error(errno as i32);
        aya::EbpfError::MapError(aya::maps::MapError::CreateError { name: "frame_tallies".to_owned(), io_error })
    }

    #[test]
    fn a_missing_capability_is_named_in_the_first_line() {
        let line = explain(map_refused_with(Errno::EPERM), "load the maps").to_string();
        assert!(line.starts_with("the kernel engine cannot load the maps: ") && line.contains("CAP_BPF"), "{line}");
    }

    #[test]
    fn a_kernel_without_bpf_is_named_in_the_first_line() {
        let line = explain(map_refused_with(Errno::ENOSYS), "load the maps").to_string();
        assert!(line.contains("CONFIG_BPF_SYSCALL"), "{line}");
    }

    #[test]
    fn the_kernels_own_words_stay_in_the_chain() {
        let chain = format!("{:#}", explain(map_refused_with(Errno::EPERM), "load the maps"));
        assert!(chain.contains("frame_tallies") && chain.contains("os error 1"), "{chain}");
    }
}

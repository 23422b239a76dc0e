//! When the certificates of this host's nodes begin: no clock can rightly be before that.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use boring::asn1::Asn1Time;
use boring::x509::X509;

/// The latest `notBefore` of the certificates in a state directory; what cannot be read does not count.
#[must_use]
pub fn latest_beginning(state_dir: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(state_dir.join("identity")).ok()?;
    let certificates = entries.flatten().map(|entry| entry.path());
    let certificates = certificates.filter(|path| path.to_string_lossy().ends_with(".cert.pem"));
    certificates.filter_map(|path| beginning(&fs::read(path).ok()?)).max()
}

fn beginning(pem: &[u8]) -> Option<SystemTime> {
    let certificate = X509::from_pem(pem).ok()?;
    let since_epoch = Asn1Time::from_unix(0).ok()?.diff(certificate.not_before()).ok()?;
    let seconds = u64::try_from(i64::from(since_epoch.days) * 86_400 + i64::from(since_epoch.secs)).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtls::Identity;
    use crate::wire::uid::Uid;

    #[test]
    fn a_fresh_certificate_begins_now_and_damaged_ones_do_not_count() {
        let directory = std::env::temp_dir().join(format!("tincan-validity-{}", std::process::id()));
        assert_eq!(latest_beginning(&directory), None);
        Identity::load_or_create(&directory, Uid::new([7; 20])).unwrap();
        fs::write(directory.join("identity/x.cert.pem"), "damaged").unwrap();
        let found = latest_beginning(&directory);
        fs::remove_dir_all(&directory).unwrap();
        let age = SystemTime::now().duration_since(found.unwrap()).unwrap();
        assert!(age < Duration::from_secs(60), "{age:?}");
    }
}

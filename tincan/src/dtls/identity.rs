//! Who this node is: an ECDSA P-256 key and its self-signed certificate, kept so that the fingerprint survives restarts.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use boring::asn1::Asn1Time;
use boring::bn::{BigNum, MsbOption};
use boring::ec::{EcGroup, EcKey};
use boring::error::ErrorStack;
use boring::ex_data::Index;
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::{PKey, Private};
use boring::ssl::{
    Ssl, SslAlert, SslContext, SslMethod, SslOptions, SslRef, SslSessionCacheMode, SslVerifyError, SslVerifyMode,
    SslVersion,
};
use boring::x509::{X509, X509Name};
use boring::{memcmp, sha};

use super::{DtlsError, ffi};
use crate::wire::fingerprint::{Fingerprint, FingerprintKind};
use crate::wire::uid::Uid;

/// Where `BoringSSL` has AES in hardware; forward secrecy and authenticated encryption in both.
const CIPHERS_FAST_AES: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305";
const CIPHERS_SLOW_AES: &str = "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES128-GCM-SHA256";

/// One small `ClientHello`: the library's default adds a post-quantum share that fills a second datagram.
const CURVES: &str = "X25519:P-256";

/// Days the certificate says it is valid. Nobody checks; an identity ends when its files are removed.
const VALIDITY_DAYS: u32 = 20 * 365;

const SERIAL_BITS: i32 = 64;
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A node's key and certificate, ready for sessions; clones share them.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    /// Built once: everything about a peer lives in its session, see [`PeerCheck`].
    context: SslContext,
    sha256: Fingerprint,
    sha1: Fingerprint,
}

/// What a session wants of its peer and what it saw, attached to the session's `SSL` and freed with it.
pub(super) struct PeerCheck {
    expected: Fingerprint,
    presented: Option<Fingerprint>,
}

static PEER_CHECK: LazyLock<Index<Ssl, PeerCheck>> =
    LazyLock::new(|| Ssl::new_ex_index().expect("an index fails only without memory"));

impl Identity {
    /// A fresh identity that is not stored.
    pub fn create(uid: Uid) -> Result<Self, DtlsError> {
        let key = generate_key()?;
        let certificate = sign_certificate(&key, uid)?;
        Self::from_parts(&key, &certificate)
    }

    /// The identity of `uid` in `<state_dir>/identity/<uid>.{key,cert}.pem`; made and stored there if it has none yet.
    pub fn load_or_create(state_dir: &Path, uid: Uid) -> Result<Self, DtlsError> {
        let directory = state_dir.join("identity");
        make_directory(&directory)?;
        let key_path = directory.join(format!("{uid}.key.pem"));
        let certificate_path = directory.join(format!("{uid}.cert.pem"));

        let certificate = read(&certificate_path)?;
        let key = match read(&key_path)? {
            Some(pem) => {
                require_private(&key_path)?;
                PKey::private_key_from_pem(&pem).map_err(|_| damaged(&key_path, "holds no PEM private key"))?
            }
            None if certificate.is_some() => return Err(damaged(&key_path, "is missing, its certificate is there")),
            None => {
                let key = generate_key()?;
                write_private(&key_path, &key.private_key_to_pem_pkcs8()?)?;
                key
            }
        };
        let certificate = if let Some(pem) = certificate {
            X509::from_pem(&pem).map_err(|_| damaged(&certificate_path, "holds no PEM certificate"))?
        } else {
            let certificate = sign_certificate(&key, uid)?;
            write_private(&certificate_path, &certificate.to_pem()?)?;
            certificate
        };
        if !certificate.public_key()?.public_eq(&key) {
            return Err(damaged(&certificate_path, "is not the certificate of the key beside it"));
        }
        Self::from_parts(&key, &certificate)
    }

    /// The digest of the certificate, as peers are told it.
    #[must_use]
    pub fn fingerprint(&self, kind: FingerprintKind) -> Fingerprint {
        match kind {
            FingerprintKind::Sha256 => self.inner.sha256,
            FingerprintKind::Sha1 => self.inner.sha1,
        }
    }

    /// A new `SSL` that accepts only the peer with this fingerprint.
    pub(super) fn open(&self, expected: Fingerprint) -> Result<Ssl, ErrorStack> {
        let mut ssl = Ssl::new(&self.inner.context)?;
        ssl.set_ex_data(*PEER_CHECK, PeerCheck { expected, presented: None });
        Ok(ssl)
    }

    fn from_parts(key: &PKey<Private>, certificate: &X509) -> Result<Self, DtlsError> {
        let der = certificate.to_der()?;
        let inner = Inner {
            context: build_context(key, certificate)?,
            sha256: digest(&der, FingerprintKind::Sha256),
            sha1: digest(&der, FingerprintKind::Sha1),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl PeerCheck {
    /// The check of a session.
    pub(super) fn of(ssl: &SslRef) -> Option<&Self> {
        ssl.ex_data(*PEER_CHECK)
    }

    /// What is wrong with the certificate the peer showed, if it showed one and it is not the expected.
    pub(super) fn mismatch(&self) -> Option<String> {
        let Self { expected, presented } = self;
        let presented = presented.as_ref().filter(|presented| *presented != expected)?;
        Some(format!("the peer's certificate has fingerprint {presented}, create_link said {expected}"))
    }
}

fn build_context(key: &PKey<Private>, certificate: &X509) -> Result<SslContext, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::dtls())?;
    context.set_min_proto_version(Some(SslVersion::DTLS1_2))?;
    context.set_max_proto_version(Some(SslVersion::DTLS1_2))?;
    context.set_certificate(certificate)?;
    context.set_private_key(key)?;
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    context.set_options(SslOptions::NO_TICKET);
    if has_fast_aes() {
        context.set_strict_cipher_list(CIPHERS_FAST_AES)?;
    } else {
        // The side without AES instructions decides, whichever role it has.
        context.set_strict_cipher_list(CIPHERS_SLOW_AES)?;
        context.set_options(SslOptions::CIPHER_SERVER_PREFERENCE);
    }
    context.set_curves_list(CURVES)?;
    context.set_custom_verify_callback(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT, check_peer);
    ffi::use_monotonic_clock(&mut context);
    Ok(context.build())
}

/// AES and carry-less multiplication, without which AES-GCM is several times slower than `ChaCha20`.
fn has_fast_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Replaces every other check of the certificate: the fingerprint is the peer's name, so chains and clocks do not matter.
fn check_peer(ssl: &mut SslRef) -> Result<(), SslVerifyError> {
    let refused = |alert| Err(SslVerifyError::Invalid(alert));
    let Some(certificate) = ssl.peer_certificate() else { return refused(SslAlert::CERTIFICATE_REQUIRED) };
    let Ok(der) = certificate.to_der() else { return refused(SslAlert::INTERNAL_ERROR) };
    let Some(check) = ssl.ex_data_mut(*PEER_CHECK) else { return refused(SslAlert::INTERNAL_ERROR) };
    let presented = digest(&der, check.expected.kind());
    check.presented = Some(presented);
    if memcmp::eq(presented.as_bytes(), check.expected.as_bytes()) {
        Ok(())
    } else {
        refused(SslAlert::BAD_CERTIFICATE)
    }
}

fn digest(der: &[u8], kind: FingerprintKind) -> Fingerprint {
    match kind {
        FingerprintKind::Sha256 => Fingerprint::Sha256(sha::sha256(der)),
        FingerprintKind::Sha1 => Fingerprint::Sha1(sha::sha1(der)),
    }
}

fn generate_key() -> Result<PKey<Private>, ErrorStack> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    PKey::from_ec_key(EcKey::generate(&group)?)
}

fn sign_certificate(key: &PKey<Private>, uid: Uid) -> Result<X509, ErrorStack> {
    let mut name = X509Name::builder()?;
    name.append_entry_by_nid(Nid::COMMONNAME, &uid.to_string())?;
    let name = name.build();
    let mut serial = BigNum::new()?;
    serial.rand(SERIAL_BITS, MsbOption::MAYBE_ZERO, false)?;

    let mut certificate = X509::builder()?;
    certificate.set_version(2)?; // X.509 v3 counts from zero.
    certificate.set_serial_number(&*serial.to_asn1_integer()?)?;
    certificate.set_subject_name(&name)?;
    certificate.set_issuer_name(&name)?;
    certificate.set_not_before(&*Asn1Time::days_from_now(0)?)?;
    certificate.set_not_after(&*Asn1Time::days_from_now(VALIDITY_DAYS)?)?;
    certificate.set_pubkey(key)?;
    certificate.sign(key, MessageDigest::sha256())?;
    Ok(certificate.build())
}

fn make_directory(directory: &Path) -> Result<(), DtlsError> {
    let made = DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory);
    made.map_err(file_error("create the directory", directory))?;
    fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE))
        .map_err(file_error("restrict the directory", directory))
}

/// The content of a file, `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, DtlsError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error("read", path)(error)),
    }
}

fn require_private(path: &Path) -> Result<(), DtlsError> {
    let mode = fs::metadata(path).map_err(file_error("read", path))?.permissions().mode() & 0o777;
    if mode & !FILE_MODE & 0o077 != 0 {
        return Err(DtlsError::Exposed { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Writes beside `path` and renames, so that a crash leaves the old file, the new one or none, never half of one.
fn write_private(path: &Path, content: &[u8]) -> Result<(), DtlsError> {
    let temporary = path.with_extension(format!("new{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(FILE_MODE).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(file_error("write", path))
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DtlsError {
    let path = path.to_owned();
    move |source| DtlsError::File { action, path, source }
}

fn damaged(path: &Path, fault: &'static str) -> DtlsError {
    let path: PathBuf = path.to_owned();
    DtlsError::Damaged { path, fault }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state directory of one test, removed with it.
    struct StateDir(PathBuf);

    impl StateDir {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tincan-identity-{test}-{}", std::process::id()));
            assert!(!path.exists());
            Self(path)
        }

        fn load(&self) -> Result<Identity, DtlsError> {
            Identity::load_or_create(&self.0, uid())
        }

        fn file(&self, extension: &str) -> PathBuf {
            self.0.join("identity").join(format!("{}.{extension}", uid()))
        }
    }

    impl Drop for StateDir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn uid() -> Uid {
        Uid::new([0xa5; 20])
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn fingerprints(identity: &Identity) -> [Fingerprint; 2] {
        [FingerprintKind::Sha256, FingerprintKind::Sha1].map(|kind| identity.fingerprint(kind))
    }

    #[test]
    fn a_stored_identity_is_private_and_keeps_its_fingerprint() {
        let state = StateDir::new("stored");
        let first = state.load().unwrap();
        assert_eq!(mode(&state.file("key.pem")), 0o600);
        assert_eq!(mode(&state.file("cert.pem")), 0o600);
        assert_eq!(mode(&state.0.join("identity")), 0o700);
        assert_eq!(fs::read_dir(state.0.join("identity")).unwrap().count(), 2, "no temporary file is left");
        assert_eq!(fingerprints(&state.load().unwrap()), fingerprints(&first));
    }

    #[test]
    fn a_certificate_is_version_3_on_p256_names_the_uid_and_has_the_fingerprint_told() {
        let state = StateDir::new("certificate");
        let identity = state.load().unwrap();
        let certificate = X509::from_pem(&fs::read(state.file("cert.pem")).unwrap()).unwrap();
        let version_3 = [0xa0, 3, 2, 1, 2]; // [0] EXPLICIT INTEGER 2, RFC 5280 section 4.1
        assert!(certificate.to_der().unwrap().windows(5).any(|bytes| bytes == version_3));
        let names: Vec<_> = certificate.subject_name().entries_by_nid(Nid::COMMONNAME).collect();
        assert_eq!(names.len(), 1);
        assert_eq!(names[0].data().as_slice(), uid().to_string().as_bytes());
        let key = certificate.public_key().unwrap().ec_key().unwrap();
        assert_eq!(key.group().curve_name(), Some(Nid::X9_62_PRIME256V1));
        for kind in [FingerprintKind::Sha256, FingerprintKind::Sha1] {
            let algorithm = match kind {
                FingerprintKind::Sha256 => MessageDigest::sha256(),
                FingerprintKind::Sha1 => MessageDigest::sha1(),
            };
            assert_eq!(identity.fingerprint(kind).as_bytes(), &*certificate.digest(algorithm).unwrap());
        }
    }

    #[test]
    fn fresh_identities_differ() {
        let [first, second] = [(); 2].map(|()| Identity::create(uid()).unwrap());
        assert_ne!(fingerprints(&first), fingerprints(&second));
    }

    #[test]
    fn a_damaged_file_is_named_with_the_way_out() {
        for (file, content, fault) in [
            ("key.pem", "not a key", "holds no PEM private key"),
            ("cert.pem", "", "holds no PEM certificate"),
            ("cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no PEM certificate"),
        ] {
            let state = StateDir::new("damaged");
            state.load().unwrap();
            fs::write(state.file(file), content).unwrap();
            let error = state.load().err().unwrap().to_string();
            let both = state.file("*");
            let expected = format!(
                "{} {fault}: restore it, or remove {} to get a new identity with a new fingerprint",
                state.file(file).display(),
                both.display()
            );
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn a_certificate_without_its_key_or_of_another_key_is_refused() {
        let state = StateDir::new("mismatch");
        state.load().unwrap();
        let foreign = generate_key().unwrap();
        write_private(&state.file("key.pem"), &foreign.private_key_to_pem_pkcs8().unwrap()).unwrap();
        let error = state.load().err().unwrap().to_string();
        assert!(error.contains("cert.pem is not the certificate of the key beside it"), "{error}");
        fs::remove_file(state.file("key.pem")).unwrap();
        let error = state.load().err().unwrap().to_string();
        assert!(error.contains("key.pem is missing, its certificate is there"), "{error}");
    }

    #[test]
    fn a_key_whose_certificate_was_never_written_gets_one() {
        let state = StateDir::new("interrupted");
        state.load().unwrap();
        fs::remove_file(state.file("cert.pem")).unwrap();
        let healed = state.load().unwrap();
        assert_eq!(fingerprints(&state.load().unwrap()), fingerprints(&healed));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let state = StateDir::new("exposed");
        state.load().unwrap();
        fs::set_permissions(state.file("key.pem"), Permissions::from_mode(0o644)).unwrap();
        let error = state.load().err().unwrap().to_string();
        assert!(error.contains("can be read by others (mode 0644)"), "{error}");
    }
}

//! Which servers are trusted: by an authority and the name in their certificate, or by a certificate known beforehand.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use boring::sha::sha256;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::XmppOptions;
use crate::wire::fingerprint::Fingerprint;

/// XEP-0368: says on a shared port that the client wants XMPP.
const ALPN: &[u8] = b"xmpp-client";

/// The TLS settings of a connection. Reads files, so it may block for some milliseconds.
pub(super) fn client_config(options: &XmppOptions) -> Result<ClientConfig> {
    let XmppOptions { ca_file, pinned, direct_tls } = options;
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().context("TLS versions")?;
    let mut config = match (pinned, ca_file) {
        (Some(pinned), _) => {
            let verifier = PinnedCertificate::new(*pinned, &provider);
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
        }
        (None, Some(path)) => builder.with_root_certificates(authorities_in(path)?).with_no_client_auth(),
        (None, None) => builder.with_root_certificates(system_authorities()?).with_no_client_auth(),
    };
    if *direct_tls {
        config.alpn_protocols = vec![ALPN.to_vec()];
    }
    Ok(config)
}

fn authorities_in(path: &Path) -> Result<RootCertStore> {
    let reading = || format!("reading the certificate authorities in {}", path.display());
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).with_context(reading)? {
        store.add(certificate.with_context(reading)?).with_context(reading)?;
    }
    ensure!(!store.is_empty(), "{} holds no certificate", path.display());
    Ok(store)
}

fn system_authorities() -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    ensure!(!store.is_empty(), "the system has no certificate authorities: name a file of them, or pin the server");
    Ok(store)
}

/// Accepts one certificate and no other. That the server holds its key is checked by the handshake's signature.
#[derive(Debug)]
struct PinnedCertificate {
    pinned: Fingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedCertificate {
    fn new(pinned: Fingerprint, provider: &CryptoProvider) -> Self {
        Self { pinned, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for PinnedCertificate {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // A SHA-1 fingerprint equals none of these, so it trusts nobody.
        if Fingerprint::Sha256(sha256(certificate)) == self.pinned {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

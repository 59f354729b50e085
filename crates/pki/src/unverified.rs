//! TLS to servers whose certificates nobody vouches for.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// The configuration of a client that takes any certificate whose key the server has. For pods, as probes, hooks and
/// the API's proxy ask them: upstream asks whether they answer, not who they are.
pub fn unverified_client() -> Arc<ClientConfig> {
    static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        Arc::new(config)
    });
    CONFIG.clone()
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    use super::*;
    use crate::{Authority, ServerNames};

    /// Lets two ends talk until neither has anything to say.
    fn shake_hands(client: &mut ClientConnection, server: &mut ServerConnection) -> io::Result<()> {
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes)?;
            server.read_tls(&mut bytes.as_slice())?;
            server.process_new_packets().map_err(io::Error::other)?;
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes)?;
            client.read_tls(&mut bytes.as_slice())?;
            client.process_new_packets().map_err(io::Error::other)?;
        }
        Ok(())
    }

    #[test]
    fn a_server_of_an_unknown_authority_under_another_name_is_spoken_to() {
        let authority = Authority::in_memory().expect("an authority");
        let names = ServerNames {
            names: vec!["elsewhere".into()],
            addresses: Vec::new(),
        };
        let issued = authority
            .issue_server("server", &names)
            .expect("a certificate");
        let (chain, key) = issued.for_rustls();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a configuration");
        let mut server = ServerConnection::new(Arc::new(config)).expect("a server");
        let name = ServerName::try_from("here").expect("a name");
        let mut client = ClientConnection::new(unverified_client(), name).expect("a client");
        shake_hands(&mut client, &mut server).expect("agreed");
    }
}

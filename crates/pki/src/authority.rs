//! The authority and what it issues.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Error, file};

const CERTIFICATE_FILE: &str = "ca.crt";
const KEY_FILE: &str = "ca.key";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks of clients may be behind.
const SKEW: Duration = Duration::from_secs(3600);

/// The cluster's certificate authority.
pub struct Authority {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// Its private key, PKCS#8 PEM.
    pub key_pem: String,
}

/// By what a server may be called.
#[derive(Clone, Debug, Default)]
pub struct ServerNames {
    /// DNS names.
    pub names: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

impl Authority {
    /// Takes up the authority in `directory`, or makes one there (valid for ten years).
    pub fn load_or_create(directory: &Path) -> Result<Authority, Error> {
        let (certificate_path, key_path) =
            (directory.join(CERTIFICATE_FILE), directory.join(KEY_FILE));
        match (file::read(&certificate_path)?, file::read(&key_path)?) {
            (Some(certificate), Some(key)) => {
                let damaged = |path: &Path| {
                    let path = path.to_path_buf();
                    move |error: rcgen::Error| Error::Damaged {
                        path,
                        reason: error.to_string(),
                    }
                };
                let key = KeyPair::from_pem(&key).map_err(damaged(&key_path))?;
                let issuer = Issuer::from_ca_cert_pem(&certificate, key)
                    .map_err(damaged(&certificate_path))?;
                Ok(Authority {
                    certificate_pem: certificate,
                    issuer,
                })
            }
            // The key is written first: a start that was cut short leaves a key alone, which nobody has seen in use.
            (None, _) => {
                file::make_private_dir(directory)?;
                let (authority, key_pem) = Authority::create()?;
                file::write(&key_path, &key_pem, 0o600)?;
                file::write(&certificate_path, &authority.certificate_pem, 0o644)?;
                Ok(authority)
            }
            (Some(_), None) => Err(Error::Incomplete { path: key_path }),
        }
    }

    /// Makes an authority in memory, for tests.
    pub fn in_memory() -> Result<Authority, Error> {
        Ok(Authority::create()?.0)
    }

    fn create() -> Result<(Authority, String), Error> {
        let subject = "kubernetes";
        let issue = |source| Error::Issue {
            subject: subject.into(),
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
        let key_pem = key.serialize_pem();
        let mut parameters = parameters(subject, None, 10 * YEAR);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        let certificate = parameters.self_signed(&key).map_err(issue)?;
        let certificate_pem = certificate.pem();
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(issue)?;
        Ok((
            Authority {
                certificate_pem,
                issuer,
            },
            key_pem,
        ))
    }

    /// The authority's certificate, PEM: what clients trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's certificate, DER.
    pub fn certificate_der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .expect("the certificate was parsed when the authority was made")
    }

    /// A server certificate for these names and addresses, valid for a year.
    pub fn issue_server(&self, common_name: &str, names: &ServerNames) -> Result<Issued, Error> {
        let mut parameters = parameters(common_name, None, YEAR);
        for name in &names.names {
            let name = name.as_str().try_into().map_err(|source| Error::Issue {
                subject: name.clone(),
                source,
            })?;
            parameters.subject_alt_names.push(SanType::DnsName(name));
        }
        for address in &names.addresses {
            parameters
                .subject_alt_names
                .push(SanType::IpAddress(*address));
        }
        self.issue(common_name, parameters, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client certificate: the common name is the user, the organization is its group
    /// (Kubernetes, "X509 client certificates"). Valid for a year.
    pub fn issue_client(
        &self,
        common_name: &str,
        organization: Option<&str>,
    ) -> Result<Issued, Error> {
        let parameters = parameters(common_name, organization, YEAR);
        self.issue(common_name, parameters, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(
        &self,
        subject: &str,
        mut parameters: CertificateParams,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Issued, Error> {
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![usage];
        parameters.use_authority_key_identifier_extension = true;
        let issue = |source| Error::Issue {
            subject: subject.into(),
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)?;
        let certificate = parameters.signed_by(&key, &self.issuer).map_err(issue)?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

impl Issued {
    /// The chain and key in the form that rustls takes.
    pub fn for_rustls(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let certificate = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .expect("rcgen writes well-formed certificates");
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .expect("rcgen writes well-formed keys");
        (vec![certificate], key)
    }
}

fn parameters(
    common_name: &str,
    organization: Option<&str>,
    validity: Duration,
) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    parameters.distinguished_name = name;
    let now = std::time::SystemTime::now();
    parameters.not_before = (now - SKEW).into();
    parameters.not_after = (now + validity).into();
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::*;

    fn parsed(pem: &str) -> (String, Vec<String>) {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).expect("a PEM block");
        let certificate = pem.parse_x509().expect("a certificate");
        let name = certificate.subject().to_string();
        let alternatives = certificate
            .subject_alternative_name()
            .expect("well-formed")
            .map(|extension| {
                extension
                    .value
                    .general_names
                    .iter()
                    .map(|name| name.to_string())
                    .collect()
            })
            .unwrap_or_default();
        (name, alternatives)
    }

    #[test]
    fn the_same_authority_is_taken_up_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = Authority::load_or_create(directory.path()).expect("made");
        let second = Authority::load_or_create(directory.path()).expect("loaded");
        assert_eq!(first.certificate_pem(), second.certificate_pem());
        let issued = second
            .issue_client("kubernetes-admin", Some("system:masters"))
            .expect("issued");
        let (name, _) = parsed(&issued.certificate_pem);
        assert!(
            name.contains("CN=kubernetes-admin") && name.contains("O=system:masters"),
            "{name}"
        );
    }

    #[test]
    fn a_server_certificate_carries_all_its_names_and_is_signed() {
        let authority = Authority::in_memory().expect("made");
        let names = ServerNames {
            names: vec!["localhost".into(), "kubernetes.default.svc".into()],
            addresses: vec!["127.0.0.1".parse().expect("an address")],
        };
        let issued = authority
            .issue_server("kube-apiserver", &names)
            .expect("issued");
        let (_, alternatives) = parsed(&issued.certificate_pem);
        assert_eq!(alternatives.len(), 3);
        let (_, ca) = parse_x509_pem(authority.certificate_pem().as_bytes()).expect("PEM");
        let (_, leaf) = parse_x509_pem(issued.certificate_pem.as_bytes()).expect("PEM");
        let (ca, leaf) = (
            ca.parse_x509().expect("ca"),
            leaf.parse_x509().expect("leaf"),
        );
        leaf.verify_signature(Some(ca.public_key()))
            .expect("signed by the authority");
    }

    #[test]
    fn a_damaged_or_missing_key_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        Authority::load_or_create(directory.path()).expect("made");
        std::fs::write(directory.path().join(KEY_FILE), "nonsense").expect("written");
        let message = Authority::load_or_create(directory.path())
            .err()
            .expect("refused")
            .to_string();
        assert!(message.contains("ca.key is damaged"), "{message}");
        std::fs::remove_file(directory.path().join(KEY_FILE)).expect("removed");
        let message = Authority::load_or_create(directory.path())
            .err()
            .expect("refused")
            .to_string();
        assert!(message.contains("ca.key is missing"), "{message}");
    }
}

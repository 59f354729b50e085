//! ServiceAccount tokens: issuing, verifying, and the documents by which others can verify them.
//!
//! A token is bound: to its account and, if asked, to a pod, secret or node. It is good only as
//! long as what it is bound to lives, which is looked up at each use.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Response, StatusCode};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::caller::Caller;
use crate::encode::metadata_str;
use crate::handle::Core;
use crate::verbs::answer::with_type;
use crate::{Body, StartError};

/// Bytes of a token that are looked at; ours have about a thousand.
const TOKEN_BYTES: usize = 16 * 1024;
/// Clocks of token users may differ by so many seconds.
const LEEWAY_SECONDS: i64 = 10;

/// Signs and verifies.
pub(crate) struct Tokens {
    issuer: String,
    key_id: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    validation: Validation,
    /// The coordinates of the public key, base64url.
    x: String,
    y: String,
}

/// What stands in a token (RFC 7519, and Kubernetes' private claims).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) aud: Vec<String>,
    pub(crate) exp: i64,
    pub(crate) iat: i64,
    pub(crate) iss: String,
    pub(crate) jti: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) kubernetes: Bound,
    pub(crate) nbf: i64,
    pub(crate) sub: String,
}

/// What a token is bound to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Bound {
    pub(crate) namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<Reference>,
    pub(crate) serviceaccount: Reference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warnafter: Option<i64>,
}

/// An object by name and unique id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) uid: String,
}

/// A token that is good.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) caller: Caller,
    /// Those of the asked audiences that the token is for.
    pub(crate) audiences: Vec<String>,
}

/// Why a token is not good.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the token is longer than {TOKEN_BYTES} bytes")]
    TooLong,
    #[error("the token cannot be read: {0}")]
    Malformed(#[source] jsonwebtoken::errors::Error),
    #[error("the token is of issuer {0:?}")]
    Issuer(String),
    #[error("the token is good from {not_before} to {expires}, now is {now}")]
    Time {
        not_before: i64,
        expires: i64,
        now: i64,
    },
    #[error("token audiences {given:?} is invalid for the target audiences {wanted:?}")]
    Audience {
        given: Vec<String>,
        wanted: Vec<String>,
    },
    #[error("the subject {0:?} is not the account of the token")]
    Subject(String),
    #[error("{kind} {name} does not exist any longer, or is another one")]
    Gone { kind: &'static str, name: String },
}

impl Tokens {
    pub(crate) fn new(key: &pki::TokenKey, issuer: &str) -> Result<Tokens, StartError> {
        let unusable =
            |_| StartError::TokenKey(jsonwebtoken::errors::ErrorKind::InvalidKeyFormat.into());
        let public = SubjectPublicKeyInfoDer::from_pem_slice(key.public_pem().as_bytes())
            .map_err(unusable)?;
        let private =
            PrivatePkcs8KeyDer::from_pem_slice(key.key_pem().as_bytes()).map_err(unusable)?;
        // The SubjectPublicKeyInfo of a P-256 key ends in its uncompressed point.
        let point = &public.as_ref()[public.as_ref().len().saturating_sub(64)..];
        let (x, y) = point.split_at(point.len() / 2);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let mut validation = Validation::new(Algorithm::ES256);
        // Times, audience and issuer are checked here, against the server's clock.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Ok(Tokens {
            issuer: issuer.to_owned(),
            key_id: key.key_id().to_owned(),
            signing: EncodingKey::from_ec_der(private.secret_pkcs8_der()),
            verifying: DecodingKey::from_ec_components(&x, &y).map_err(StartError::TokenKey)?,
            validation,
            x,
            y,
        })
    }

    /// The `iss` of our tokens, which is also their audience if none is asked for.
    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// A signed token.
    pub(crate) fn issue(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, claims, &self.signing)
    }

    /// Whose token it is, if it is good for one of `audiences`; without any, for this server.
    pub(crate) fn authenticate(
        &self,
        core: &Core,
        token: &str,
        audiences: &[String],
    ) -> Result<Verified, TokenError> {
        if token.len() > TOKEN_BYTES {
            return Err(TokenError::TooLong);
        }
        let claims: Claims = jsonwebtoken::decode(token, &self.verifying, &self.validation)
            .map_err(TokenError::Malformed)?
            .claims;
        if claims.iss != self.issuer {
            return Err(TokenError::Issuer(claims.iss));
        }
        self.check_time(core.now(), &claims)?;
        let own = [self.issuer.clone()];
        let wanted = if audiences.is_empty() {
            &own[..]
        } else {
            audiences
        };
        let matching: Vec<String> = wanted
            .iter()
            .filter(|audience| claims.aud.contains(audience))
            .cloned()
            .collect();
        if matching.is_empty() {
            return Err(TokenError::Audience {
                given: claims.aud,
                wanted: wanted.to_vec(),
            });
        }
        check_bound(core, &claims)?;
        Ok(Verified {
            caller: caller_of(&claims),
            audiences: matching,
        })
    }

    fn check_time(&self, now: Timestamp, claims: &Claims) -> Result<(), TokenError> {
        let now = now.as_second();
        let good = now.saturating_add(LEEWAY_SECONDS) >= claims.nbf
            && now <= claims.exp.saturating_add(LEEWAY_SECONDS);
        if good {
            return Ok(());
        }
        Err(TokenError::Time {
            not_before: claims.nbf,
            expires: claims.exp,
            now,
        })
    }

    /// The documents of OpenID discovery; `None` for other paths.
    pub(crate) fn documents(&self, path: &str) -> Option<Response<Body>> {
        match path {
            "/.well-known/openid-configuration" => {
                let document = json!({
                    "issuer": self.issuer,
                    "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
                    "response_types_supported": ["id_token"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["ES256"],
                });
                Some(with_type(
                    StatusCode::OK,
                    document.to_string().into(),
                    "application/json",
                ))
            }
            "/openid/v1/jwks" => Some(with_type(
                StatusCode::OK,
                self.key_set().to_string().into(),
                "application/jwk-set+json",
            )),
            _ => None,
        }
    }

    /// The public key as a JSON Web Key Set (RFC 7517).
    fn key_set(&self) -> Value {
        json!({"keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id,
            "crv": "P-256",
            "alg": "ES256",
            "x": self.x,
            "y": self.y,
        }]})
    }
}

/// Checks that what the token is bound to still lives.
fn check_bound(core: &Core, claims: &Claims) -> Result<(), TokenError> {
    let bound = &claims.kubernetes;
    let account = &bound.serviceaccount;
    let expected = format!("system:serviceaccount:{}:{}", bound.namespace, account.name);
    if claims.sub != expected {
        return Err(TokenError::Subject(claims.sub.clone()));
    }
    alive(
        core,
        "serviceaccounts",
        "service account",
        &bound.namespace,
        account,
    )?;
    if let Some(pod) = &bound.pod {
        alive(core, "pods", "pod", &bound.namespace, pod)?;
    } else if let Some(secret) = &bound.secret {
        alive(core, "secrets", "secret", &bound.namespace, secret)?;
    } else if let Some(node) = &bound.node {
        alive(core, "nodes", "node", "", node)?;
    }
    Ok(())
}

fn alive(
    core: &Core,
    plural: &str,
    kind: &'static str,
    namespace: &str,
    wanted: &Reference,
) -> Result<(), TokenError> {
    let resource = core.builtin("", "v1", plural);
    let object = core.read(resource, namespace, &wanted.name);
    // A minute is left to what is being deleted, so that it can use its token to the end.
    const GRACE_SECONDS: i64 = 60;
    let dying_since = object.as_ref().and_then(|object| {
        metadata_str(object, "deletionTimestamp")
            .parse::<Timestamp>()
            .ok()
    });
    let ended = dying_since
        .is_some_and(|end| core.now().as_second() > end.as_second().saturating_add(GRACE_SECONDS));
    if object.is_some_and(|object| metadata_str(&object, "uid") == wanted.uid) && !ended {
        return Ok(());
    }
    Err(TokenError::Gone {
        kind,
        name: wanted.name.clone(),
    })
}

fn caller_of(claims: &Claims) -> Caller {
    let bound = &claims.kubernetes;
    let account = &bound.serviceaccount;
    let mut caller = Caller::service_account(&bound.namespace, &account.name, &account.uid);
    let mut note = |name: &str, value: &str| {
        caller.extra.insert(
            format!("authentication.kubernetes.io/{name}"),
            vec![value.to_owned()],
        );
    };
    note("credential-id", &format!("JTI={}", claims.jti));
    if let Some(pod) = &bound.pod {
        note("pod-name", &pod.name);
        note("pod-uid", &pod.uid);
    }
    if let Some(node) = &bound.node {
        note("node-name", &node.name);
        note("node-uid", &node.uid);
    }
    caller
}

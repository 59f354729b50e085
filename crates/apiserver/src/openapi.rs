//! The published schemas (OpenAPI 3), for `kubectl explain`, `apply` and `diff`.
//!
//! A document is large and seldom asked for (clients keep it under its hash), so it is made for
//! each request and not kept.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::Body;
use crate::caller::hexadecimal;
use crate::route::Query;
use crate::status::Failure;
use crate::verbs::answer::with_type;

const ROOT: &str = "/openapi/v3";
/// The older form. Its document names no kinds: clients of this level read the newer one, and fall back
/// to this only for what that does not have. kubectl must get an answer then to go on to its message.
const ROOT_V2: &str = "/openapi/v2";
/// The form of version 2 that Go clients ask for.
const PROTOBUF_V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The documents of one version of the program.
#[derive(Debug)]
pub(crate) struct Documents {
    /// What makes the documents of this program differ from those of another.
    version: String,
}

impl Documents {
    pub(crate) fn new(version: &str) -> Documents {
        Documents {
            version: version.to_owned(),
        }
    }

    /// Answers `/openapi/v2`, `/openapi/v3` and what is below it; `None` for other paths.
    pub(crate) fn answer(
        &self,
        path: &str,
        query: &Query,
        headers: &HeaderMap,
    ) -> Option<Result<Response<Body>, Failure>> {
        if path == ROOT_V2 {
            return Some(Ok(self.version_2(headers)));
        }
        let rest = path.strip_prefix(ROOT)?;
        if rest.is_empty() || rest == "/" {
            let index = self.index().to_string();
            return Some(Ok(with_type(
                StatusCode::OK,
                index.into(),
                "application/json",
            )));
        }
        let wanted = rest.strip_prefix('/')?;
        let document = kinds::builtin().openapi_v3(wanted)?;
        let hash = self.hash(wanted);
        let tag = format!("\"{hash}\"");
        let known = headers
            .get(header::IF_NONE_MATCH)
            .is_some_and(|given| given.as_bytes() == tag.as_bytes());
        let mut response = if known {
            with_type(StatusCode::NOT_MODIFIED, Body::empty(), "application/json")
        } else {
            with_type(
                StatusCode::OK,
                document.to_string().into(),
                "application/json",
            )
        };
        let headers = response.headers_mut();
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(header::ETAG, tag);
        }
        if query.get("hash") == Some(hash.as_str()) {
            headers.insert(
                header::CACHE_CONTROL,
                HeaderValue::from_static("public, immutable"),
            );
        }
        Some(Ok(response))
    }

    /// OpenAPI 2 with its head only, as protobuf for those who ask for it (gnostic's `openapi.v2.Document`:
    /// field 1 `swagger`, field 2 `info` with 1 `title`, 2 `version`).
    fn version_2(&self, headers: &HeaderMap) -> Response<Body> {
        const TITLE: &str = "Kubernetes";
        let protobuf = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|accept| accept.to_str().ok())
            .any(|accept| accept.contains("openapi.spec.v2") && accept.contains("protobuf"));
        if protobuf {
            let info = [
                field(1, TITLE.as_bytes()),
                field(2, self.version.as_bytes()),
            ]
            .concat();
            let document = [field(1, b"2.0"), field(2, &info)].concat();
            return with_type(StatusCode::OK, document.into(), PROTOBUF_V2);
        }
        let document = json!({"swagger": "2.0", "info": {"title": TITLE, "version": self.version}, "paths": {}});
        with_type(
            StatusCode::OK,
            document.to_string().into(),
            "application/json",
        )
    }

    fn index(&self) -> Value {
        let paths: Map<String, Value> = kinds::builtin()
            .openapi_paths()
            .into_iter()
            .map(|path| {
                let url = format!("{ROOT}/{path}?hash={}", self.hash(&path));
                (path, json!({"serverRelativeURL": url}))
            })
            .collect();
        json!({"paths": paths})
    }

    /// The documents are part of the program: its version and the path stand for the content.
    fn hash(&self, path: &str) -> String {
        let text = format!("{} {path}", self.version);
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        hexadecimal(digest.as_ref()).to_uppercase()
    }
}

/// A length-delimited protobuf field of fewer than 128 bytes.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    debug_assert!(content.len() < 128, "longer lengths take two bytes");
    let mut field = vec![number << 3 | 2, content.len() as u8];
    field.extend(content);
    field
}

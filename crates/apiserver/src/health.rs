//! Whether the server is well, and which version it is.

use http::{Response, StatusCode};
use serde_json::json;
use store::Health;

use crate::Body;
use crate::handle::Core;
use crate::route::Query;
use crate::verbs::answer::with_type;

const TEXT: &str = "text/plain; charset=utf-8";

/// Answers `/healthz`, `/livez`, `/readyz`, each check of them, and `/version`.
pub(crate) fn answer(core: &Core, path: &str, query: &Query) -> Option<Response<Body>> {
    let path = path.trim_end_matches('/');
    if path == "/version" {
        return Some(version(core));
    }
    let mut segments = path.trim_start_matches('/').splitn(2, '/');
    let endpoint = segments.next()?;
    if !matches!(endpoint, "healthz" | "livez" | "readyz") {
        return None;
    }
    let store = match core.store().health() {
        Health::Writes => true,
        // To begin anew makes no room on a disk.
        Health::Refuses => endpoint == "livez",
        Health::Ended => false,
    };
    let checks = [
        ("ping", true),
        ("log", true),
        ("store", store),
        (
            "poststarthook/bootstrap",
            core.is_started() || endpoint == "livez",
        ),
    ];
    if let Some(wanted) = segments.next() {
        let (_, well) = checks.iter().find(|(name, _)| *name == wanted)?;
        return Some(verdict(
            *well,
            "ok".into(),
            format!("internal server error: {wanted} failed"),
        ));
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut text = String::new();
    let mut well = true;
    for (name, passed) in checks {
        if excluded.contains(&name) {
            text.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if passed {
            text.push_str(&format!("[+]{name} ok\n"));
        } else {
            well = false;
            text.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    let verbose = format!("{text}{endpoint} check passed\n");
    let short = if query.get("verbose").is_some() {
        verbose
    } else {
        "ok".into()
    };
    Some(verdict(
        well,
        short,
        format!("{text}{endpoint} check failed\n"),
    ))
}

fn verdict(well: bool, passed: String, failed: String) -> Response<Body> {
    if well {
        with_type(StatusCode::OK, passed.into(), TEXT)
    } else {
        with_type(StatusCode::INTERNAL_SERVER_ERROR, failed.into(), TEXT)
    }
}

fn version(core: &Core) -> Response<Body> {
    let version = &core.config.version;
    let mut numbers = version.git_version.trim_start_matches('v').split('.');
    let document = json!({
        "major": numbers.next().unwrap_or_default(),
        "minor": numbers.next().unwrap_or_default(),
        "gitVersion": version.git_version,
        "gitCommit": version.git_commit,
        "gitTreeState": "clean",
        "buildDate": version.build_date,
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    });
    with_type(
        StatusCode::OK,
        document.to_string().into(),
        "application/json",
    )
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// 404 of paths outside of the API, as Go's HTTP server answers it.
pub(crate) fn plain_not_found() -> Response<Body> {
    with_type(StatusCode::NOT_FOUND, "404 page not found\n".into(), TEXT)
}

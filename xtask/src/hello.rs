//! `cargo xtask hello`: the main job on a bare machine.

use anyhow::Context;

use crate::shell::{Run, command};
use crate::{build, images, packages};

const MANIFESTS: &str = "examples/hellok8s/manifests";

pub(crate) fn run() -> anyhow::Result<()> {
    packages::install(packages::IMAGES)?;
    packages::install(packages::TEST)?;
    packages::install_kubectl()?;
    let wharf = build::release(&["wharf"])?.join("wharf");
    let wharf = wharf
        .to_str()
        .context("the path of the program is no UTF-8")?;
    let images = images::make()?;
    show(&[wharf, "up"])?;
    for version in ["v1", "v2"] {
        let archive = images.join(format!("hellok8s-{version}.tar"));
        show(&[wharf, "image", "load", &archive.to_string_lossy()])?;
    }
    show(&[
        "kubectl",
        "apply",
        "-f",
        &format!("{MANIFESTS}/deployment.yaml"),
        "-f",
        &format!("{MANIFESTS}/service-nodeport.yaml"),
    ])?;
    show(&[
        "kubectl",
        "rollout",
        "status",
        "deployment/hellok8s-deployment",
        "--timeout=60s",
    ])?;
    show(&["kubectl", "get", "pods,services", "-o", "wide"])?;
    show(&[
        "curl",
        "-s",
        "--retry",
        "3",
        "--retry-connrefused",
        "http://127.0.0.1:30000",
    ])?;
    println!("\nIt runs. Next: kubectl get pods; {wharf} status; {wharf} down");
    Ok(())
}

/// Prints a command as one would type it, and runs it.
fn show(words: &[&str]) -> anyhow::Result<()> {
    println!("\n$ {}", words.join(" "));
    command(words[0]).args(&words[1..]).run()
}

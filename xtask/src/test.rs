//! `cargo xtask test`: every test, the cheap ones first.

use anyhow::bail;

use crate::shell::{Run, cargo, root};
use crate::{build, images, packages};

pub(crate) fn run() -> anyhow::Result<()> {
    if !is_root()? {
        bail!("the tests make namespaces, links and containers: run them as root");
    }
    packages::install(packages::BUILD)?;
    packages::install(packages::IMAGES)?;
    packages::install(packages::TEST)?;
    packages::install_kubectl()?;
    cargo().args(["test", "--workspace", "--locked"]).run()?;
    let built = build::release(&["wharf"])?;
    let images = images::make()?;
    cargo()
        .args([
            "test",
            "--locked",
            "--manifest-path",
            "conformance/Cargo.toml",
            "--target-dir",
        ])
        .arg(root().join("target/conformance"))
        .env("WHARF", built.join("wharf"))
        .env("WHARF_IMAGES", images)
        .run()
}

fn is_root() -> anyhow::Result<bool> {
    let id = crate::shell::command("id").arg("-u").read()?;
    Ok(id.trim() == "0")
}

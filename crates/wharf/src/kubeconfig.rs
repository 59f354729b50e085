//! The administrator's kubeconfig, which `wharf up` merges into the user's.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// The group that may do everything, so that no RBAC object can lock the owner of the machine out.
const GROUP: &str = "system:masters";

/// Writes it with a fresh client certificate; mode 0600.
pub(crate) fn write(config: &cli::Config, authority: &pki::Authority) -> anyhow::Result<()> {
    let admin = authority.issue_client("kubernetes-admin", Some(GROUP))?;
    let name = config.context();
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {
            "server": config.server_url(),
            "certificate-authority-data": STANDARD.encode(authority.certificate_pem()),
        }}],
        "users": [{"name": name, "user": {
            "client-certificate-data": STANDARD.encode(&admin.certificate_pem),
            "client-key-data": STANDARD.encode(&admin.key_pem),
        }}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    });
    let path = config.instance.admin_kubeconfig();
    let text = serde_saphyr::to_string(&kubeconfig).context("write YAML")?;
    let temporary = path.with_extension("tmp");
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&temporary, &path)
    })();
    written.with_context(|| format!("write {}", path.display()))
}

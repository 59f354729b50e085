//! The user's kubeconfig file: one cluster, one user, one context of ours in it, the rest untouched.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// Larger is no kubeconfig.
const BYTES_MAX: u64 = 4 << 20;

/// Puts the cluster, user and context of `source` (the administrator's kubeconfig that the server
/// wrote) into `target` under `name`, and makes the context current.
pub(crate) fn merge(source: &Path, target: &Path, name: &str) -> anyhow::Result<()> {
    let source: Value = parse(&crate::read_to_string(source)?, source)?;
    let mut config = read(target)?;
    let part = |list: &str, key: &str| source[list][0][key].clone();
    put(
        &mut config,
        "clusters",
        name,
        "cluster",
        part("clusters", "cluster"),
    )?;
    put(&mut config, "users", name, "user", part("users", "user"))?;
    let context = json!({"cluster": name, "user": name});
    put(&mut config, "contexts", name, "context", context)?;
    config["current-context"] = json!(name);
    write(target, &config)
}

/// Takes everything of that name out of `target`. Nothing to do when there is no such file.
pub(crate) fn remove(target: &Path, name: &str) -> anyhow::Result<()> {
    if !target.exists() {
        return Ok(());
    }
    let before = read(target)?;
    let mut config = before.clone();
    for list in ["clusters", "users", "contexts"] {
        if let Some(entries) = config[list].as_array_mut() {
            entries.retain(|entry| entry["name"] != name);
        }
    }
    if config["current-context"] == name {
        config["current-context"] = json!("");
    }
    if config == before {
        return Ok(());
    }
    write(target, &config)
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let text = match fs::metadata(path) {
        Ok(metadata) if metadata.len() > BYTES_MAX => {
            bail!(
                "{} is too large for a kubeconfig; choose another with --kubeconfig",
                path.display()
            )
        }
        Ok(_) => crate::read_to_string(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    if text.trim().is_empty() {
        return Ok(
            json!({"apiVersion": "v1", "kind": "Config", "preferences": {},
            "clusters": [], "users": [], "contexts": [], "current-context": ""}),
        );
    }
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> anyhow::Result<Value> {
    let value: Value = serde_saphyr::from_str(text)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .with_context(|| {
            format!(
                "{} is no YAML; mend it, or choose another with --kubeconfig",
                path.display()
            )
        })?;
    if !value.is_object() {
        bail!(
            "{} is no kubeconfig; mend it, or choose another with --kubeconfig",
            path.display()
        );
    }
    Ok(value)
}

fn put(config: &mut Value, list: &str, name: &str, key: &str, value: Value) -> anyhow::Result<()> {
    let entries = &mut config[list];
    if entries.is_null() {
        *entries = json!([]);
    }
    let Some(entries) = entries.as_array_mut() else {
        bail!("kubeconfig: {list} is no list; mend it, or choose another file with --kubeconfig");
    };
    entries.retain(|entry| entry["name"] != name);
    entries.push(json!({"name": name, key: value}));
    Ok(())
}

/// Replaces the file in one step; mode 0600, as it holds a key; the owner stays who it was.
fn write(path: &Path, config: &Value) -> anyhow::Result<()> {
    let text = serde_saphyr::to_string(config).context("write YAML")?;
    // A link stays a link: what it points at is replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let directory = path.parent().context("the kubeconfig has no directory")?;
    let written = (|| {
        fs::create_dir_all(directory)?;
        let temporary = directory.join(format!(".wharf-kubeconfig-{}", std::process::id()));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if let Ok(metadata) = fs::metadata(&path) {
            std::os::unix::fs::chown(&temporary, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
        fs::rename(&temporary, &path)
    })();
    written.with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(std::path::PathBuf);

    impl Files {
        fn new(name: &str) -> Files {
            let directory =
                std::env::temp_dir().join(format!("wharf-{name}-{}", std::process::id()));
            fs::create_dir_all(&directory).expect("made");
            fs::write(
                directory.join("admin"),
                "clusters:\n- name: x\n  cluster: {server: 'https://127.0.0.1:6443'}\nusers:\n- name: x\n  user: {token: t}\n",
            )
            .expect("written");
            Files(directory)
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn other_clusters_stay_and_ours_comes_and_goes() {
        let files = Files::new("merge");
        let (admin, target) = (files.0.join("admin"), files.0.join("config"));
        fs::write(
            &target,
            "apiVersion: v1\nkind: Config\ncurrent-context: other\nextensions: [{name: kept}]\nclusters:\n- name: other\n  cluster: {server: 'https://other'}\ncontexts:\n- name: other\n  context: {cluster: other, user: 'yes'}\nusers:\n- name: 'yes'\n  user: {password: '0644'}\n",
        )
        .expect("written");
        let before = read(&target).expect("read");
        merge(&admin, &target, "wharf").expect("merged");
        merge(&admin, &target, "wharf").expect("merged again");
        let merged = read(&target).expect("read");
        assert_eq!(merged["current-context"], "wharf");
        assert_eq!(merged["clusters"].as_array().expect("a list").len(), 2);
        assert_eq!(merged["users"][0]["user"]["password"], "0644");
        assert_eq!(
            merged["clusters"][1]["cluster"]["server"],
            "https://127.0.0.1:6443"
        );
        let mode = fs::metadata(&target).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        remove(&target, "wharf").expect("removed");
        let mut after = read(&target).expect("read");
        after["current-context"] = json!("other");
        assert_eq!(after, before);
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_named_and_left_alone() {
        let files = Files::new("bad");
        let (admin, target) = (files.0.join("admin"), files.0.join("config"));
        for content in ["just words", "a: [", "- list"] {
            fs::write(&target, content).expect("written");
            let message = format!(
                "{:#}",
                merge(&admin, &target, "wharf").expect_err("refused")
            );
            assert!(message.contains("--kubeconfig"), "{message}");
            assert_eq!(fs::read_to_string(&target).expect("there"), content);
        }
    }
}

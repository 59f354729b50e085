//! The user's kubeconfig file: one cluster, one user, one context of ours in it, the rest untouched.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// Larger is no kubeconfig.
const BYTES_MAX: u64 = 4 << 20;

/// Fails if [`merge`] would not know what to do with `target`, so that this is known before a cluster
/// is started for it.
pub(crate) fn check(target: &Path) -> anyhow::Result<()> {
    let mut config = read(target)?;
    for list in ["clusters", "users", "contexts"] {
        entries(&mut config, list, target)?;
    }
    Ok(())
}

/// Puts the cluster, user and context of `source` (the administrator's kubeconfig that the server
/// wrote) into `target` under `name`, and makes the context current.
pub(crate) fn merge(source: &Path, target: &Path, name: &str) -> anyhow::Result<()> {
    let source: Value = parse(&crate::read_to_string(source)?, source)?;
    let mut config = read(target)?;
    let part = |list: &str, key: &str| source[list][0][key].clone();
    let context = json!({"cluster": name, "user": name});
    for (list, key, value) in [
        ("clusters", "cluster", part("clusters", "cluster")),
        ("users", "user", part("users", "user")),
        ("contexts", "context", context),
    ] {
        let entries = entries(&mut config, list, target)?;
        entries.retain(|entry| entry["name"] != name);
        entries.push(json!({"name": name, key: value}));
    }
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
        // Replacing a device or a pipe would take it away from everybody.
        Ok(metadata) if !metadata.is_file() => {
            bail!(
                "{} is no file; choose another with --kubeconfig",
                path.display()
            )
        }
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
    let value: Value = serde_saphyr::from_str_with_options(text, yaml_options())
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

/// Scalars mean what they mean to kubectl, which keeps YAML 1.1.
fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        strict_booleans: false,
        legacy_octal_numbers: true,
    }
}

/// One of the lists of a kubeconfig; an absent one begins empty.
fn entries<'a>(
    config: &'a mut Value,
    list: &str,
    path: &Path,
) -> anyhow::Result<&'a mut Vec<Value>> {
    let entries = &mut config[list];
    if entries.is_null() {
        *entries = json!([]);
    }
    entries.as_array_mut().with_context(|| {
        format!(
            "{}: {list} is no list; mend it, or choose another with --kubeconfig",
            path.display()
        )
    })
}

/// Replaces the file in one step; mode 0600, as it holds a key; the owner stays who it was.
///
/// The directory may be somebody else's, whose links we must not follow and whose files must not become
/// ours: until it is put in its place, the new file has a name that nobody knows.
fn write(path: &Path, config: &Value) -> anyhow::Result<()> {
    let text = serde_saphyr::to_string(config).context("write YAML")?;
    let path = target_of(path);
    let directory = path.parent().context("the kubeconfig has no directory")?;
    let written = (|| {
        fs::create_dir_all(directory)?;
        // Made with O_EXCL and mode 0600; deleted again if it is not put in its place.
        let mut file = tempfile::Builder::new()
            .prefix(".wharf-kubeconfig-")
            .tempfile_in(directory)?;
        file.write_all(text.as_bytes())?;
        if let Ok(metadata) = fs::metadata(&path) {
            std::os::unix::fs::fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        file.as_file().sync_all()?;
        file.persist(&path)?;
        io::Result::Ok(())
    })();
    written.with_context(|| format!("write {}", path.display()))
}

/// A link stays a link: what it points at is replaced, or made.
fn target_of(path: &Path) -> PathBuf {
    if let Ok(found) = fs::canonicalize(path) {
        return found;
    }
    match (fs::read_link(path), path.parent()) {
        (Ok(target), Some(directory)) => directory.join(target),
        _ => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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

    #[test]
    fn links_that_wait_for_the_new_file_lead_nowhere() {
        let files = Files::new("waiting");
        let (admin, target) = (files.0.join("admin"), files.0.join("config"));
        let victim = files.0.join("victim");
        fs::write(&victim, "kept").expect("written");
        let foreseen = format!(".wharf-kubeconfig-{}", std::process::id());
        std::os::unix::fs::symlink(&victim, files.0.join(&foreseen)).expect("linked");
        merge(&admin, &target, "wharf").expect("merged");
        assert_eq!(fs::read_to_string(&victim).expect("there"), "kept");
        let metadata = fs::symlink_metadata(&target).expect("there");
        assert!(metadata.is_file());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let mut names: Vec<_> = fs::read_dir(&files.0)
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, [&foreseen, "admin", "config", "victim"]);
    }

    #[test]
    fn devices_stay_and_links_are_followed() {
        let files = Files::new("links");
        let (admin, link) = (files.0.join("admin"), files.0.join("link"));
        for device in ["/dev/null", "/dev/full", "/dev"] {
            let message = check(Path::new(device)).expect_err("refused").to_string();
            assert!(message.contains(device), "{message}");
        }
        std::os::unix::fs::symlink("target", &link).expect("linked");
        merge(&admin, &link, "wharf").expect("merged");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert!(files.0.join("target").is_file());
    }

    #[test]
    fn what_cannot_be_written_leaves_no_keys_behind() {
        let files = Files::new("unwritable");
        let target = files.0.join("config");
        fs::create_dir(&target).expect("made");
        write(&target, &json!({})).expect_err("a directory is in the way");
        let left = fs::read_dir(&files.0).expect("there").count();
        assert_eq!(left, 2, "the directory and `admin`");
    }

    #[test]
    fn what_others_wrote_means_the_same_afterwards() {
        let files = Files::new("scalars");
        let (admin, target) = (files.0.join("admin"), files.0.join("config"));
        let written = "extensions: [{name: e, extension: {mode: 0644, on: yes, text: '0644', day: 2020-01-01}}]\n";
        fs::write(&target, written).expect("written");
        merge(&admin, &target, "wharf").expect("merged");
        let extension = read(&target).expect("read")["extensions"][0]["extension"].clone();
        let expected = json!({"mode": 420, "on": true, "text": "0644", "day": "2020-01-01"});
        assert_eq!(extension, expected);
    }
}

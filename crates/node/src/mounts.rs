//! What a container sees of its pod's volumes.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use engine::{Mount, Propagation};
use k8s_openapi::api::core::v1::{Container, PodSpec, VolumeMount};
use volume::bind_sub_path;

use crate::expand::expand;
use crate::volumes::Places;

/// Directory of a pod below which sub-paths are bound.
pub(crate) const SUB_PATHS: &str = "volume-subpaths";

/// The container's volume mounts. Sub-paths are bound below the pod's directory, so that what a
/// container did to its volume meanwhile cannot lead the mount elsewhere.
pub(crate) fn mounts(
    spec: &PodSpec,
    places: &Places,
    container: &Container,
    pod_dir: &Path,
    value_of: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let (volume, name) = (&mount.name, &container.name);
        let place = places.get(volume).ok_or_else(|| {
            format!("cannot find volume \"{volume}\" to mount into container \"{name}\"")
        })?;
        if mount.recursive_read_only.as_deref() == Some("Enabled") {
            return Err(format!(
                "volume \"{volume}\" requested recursive read-only mode, but it is not supported by the runtime"
            ));
        }
        let source = match sub_path(mount, &value_of)? {
            None => place.clone(),
            Some(path) => {
                let own = pod_dir
                    .join(SUB_PATHS)
                    .join(volume)
                    .join(name)
                    .join(index.to_string());
                let bound = volume::remove(&own)
                    .map_err(|error| error.to_string())
                    .and_then(|()| {
                        bind_sub_path(place, &path, &own).map_err(|error| error.to_string())
                    });
                bound.map_err(|error| {
                    format!(
                        "failed to prepare subPath for volumeMount \"{volume}\" of container \"{name}\": {error}"
                    )
                })?
            }
        };
        mounts.push(Mount {
            source,
            target: PathBuf::from(&mount.mount_path),
            read_only: mount.read_only == Some(true) || is_made_by_us(spec, volume),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    Ok(mounts)
}

/// Whether the volume is what this node wrote there. Nobody else may: whoever could write to it could
/// lead the next writing astray, and would lose what it wrote (CVE-2017-1002102).
fn is_made_by_us(spec: &PodSpec, name: &str) -> bool {
    let mut volumes = spec.volumes.iter().flatten();
    volumes.any(|volume| {
        volume.name == name
            && (volume.config_map.is_some()
                || volume.secret.is_some()
                || volume.downward_api.is_some()
                || volume.projected.is_some()
                || volume.image.is_some())
    })
}

/// The path below the volume, if not all of it is mounted. An expression may only name what has a value.
fn sub_path(
    mount: &VolumeMount,
    value_of: &impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, String> {
    let plain = mount.sub_path.as_ref().filter(|path| !path.is_empty());
    if let Some(path) = plain {
        return Ok(Some(path.clone()));
    }
    let expression = mount.sub_path_expr.as_ref();
    let Some(expression) = expression.filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let missing = RefCell::new(Vec::new());
    let path = expand(expression, |name| {
        let value = value_of(name);
        if value.is_none() {
            missing.borrow_mut().push(name.to_owned());
        }
        value
    });
    let missing = missing.into_inner();
    match missing.is_empty() {
        true => Ok(Some(path)),
        false => Err(format!("missing value for {}", missing.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sub_paths_are_of_what_is_known() {
        let check = |mount: serde_json::Value, expected: Result<Option<&str>, &str>| {
            let mut whole = json!({"name": "v", "mountPath": "/v"});
            let fields = mount.as_object().expect("fields").clone();
            whole.as_object_mut().expect("a mount").extend(fields);
            let mount: VolumeMount = serde_json::from_value(whole).expect("a mount");
            let seen = sub_path(&mount, &|name| (name == "A").then(|| "a".to_owned()));
            let seen = seen.as_ref().map(Option::as_deref).map_err(String::as_str);
            assert_eq!(seen, expected);
        };
        check(json!({}), Ok(None));
        check(json!({"subPath": "", "subPathExpr": ""}), Ok(None));
        check(json!({"subPath": "x/$(A)"}), Ok(Some("x/$(A)")));
        check(json!({"subPathExpr": "x/$(A)"}), Ok(Some("x/a")));
        check(
            json!({"subPathExpr": "$(B)/$(A)"}),
            Err("missing value for B"),
        );
    }

    #[track_caller]
    fn check(volume: serde_json::Value, mount: serde_json::Value, expected: Result<bool, &str>) {
        let place = tempfile::tempdir().expect("a directory");
        std::fs::write(place.path().join("key"), "x").expect("a file");
        let (mut whole, mut volume) = (json!({"name": "v", "mountPath": "/v"}), volume);
        whole
            .as_object_mut()
            .expect("a mount")
            .extend(mount.as_object().expect("fields").clone());
        volume["name"] = json!("v");
        let spec: PodSpec = serde_json::from_value(json!({
            "containers": [{"name": "c", "volumeMounts": [whole]}], "volumes": [volume],
        }))
        .expect("a spec");
        let places = Places::from([("v".to_owned(), place.path().to_owned())]);
        let own = tempfile::tempdir().expect("a directory");
        let seen = mounts(&spec, &places, &spec.containers[0], own.path(), |_| None);
        volume::remove(&own.path().join(SUB_PATHS)).expect("removed");
        let seen = seen.map(|mounts| mounts[0].read_only);
        assert_eq!(seen, expected.map_err(str::to_owned));
    }

    #[test]
    fn what_this_node_writes_is_read_only_for_all_others() {
        let ours = [
            json!({"configMap": {"name": "x"}}),
            json!({"secret": {"secretName": "x"}}),
            json!({"downwardAPI": {}}),
            json!({"projected": {"sources": []}}),
            json!({"image": {"reference": "x"}}),
        ];
        for volume in ours {
            check(volume.clone(), json!({}), Ok(true));
            check(volume.clone(), json!({"readOnly": false}), Ok(true));
            check(volume, json!({"subPath": "key"}), Ok(true));
        }
        for volume in [json!({"emptyDir": {}}), json!({"hostPath": {"path": "/x"}})] {
            check(volume.clone(), json!({}), Ok(false));
            check(volume, json!({"readOnly": true}), Ok(true));
        }
    }

    #[test]
    fn read_only_all_the_way_down_is_not_promised() {
        let volume = json!({"emptyDir": {}});
        let mount = |word| json!({"readOnly": true, "recursiveReadOnly": word});
        check(volume.clone(), mount("IfPossible"), Ok(true));
        check(
            volume,
            mount("Enabled"),
            Err(
                "volume \"v\" requested recursive read-only mode, but it is not supported by the runtime",
            ),
        );
    }
}

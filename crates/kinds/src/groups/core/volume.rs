//! Checks of volumes and where containers mount them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{container, env};
use crate::fault::{Fault, Path};
use crate::names;
use crate::read::{list, text};

/// The volumes of a pod. Returns the names of those with which nothing is wrong.
pub(super) fn validate<'a>(
    spec: &'a Value,
    path: Path<'_>,
    faults: &mut Vec<Fault>,
) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut valid = BTreeSet::new();
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let path = path.index(index);
        let before = faults.len();
        source(volume, path, faults);
        let name = text(volume, "name");
        if name.is_empty() {
            faults.push(Fault::required(path.child("name"), ""));
        } else {
            let problems = names::dns1123_label(name);
            if problems.is_empty() && !seen.insert(name) {
                faults.push(Fault::duplicate(path.child("name"), name));
            }
            faults.extend(
                problems
                    .into_iter()
                    .map(|problem| Fault::invalid(path.child("name"), name, problem)),
            );
        }
        if faults.len() == before {
            valid.insert(name);
        }
    }
    valid
}

/// The order in which kinds of volumes are looked for; the first counts, others are too many.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

fn source(volume: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let mut found = 0;
    for kind in SOURCES.into_iter().filter(|kind| !volume[*kind].is_null()) {
        found += 1;
        let source_path = path.child(kind);
        if found > 1 {
            faults.push(Fault::forbidden(
                source_path,
                "may not specify more than 1 volume type",
            ));
            continue;
        }
        of_kind(kind, &volume[kind], source_path, faults);
    }
    if found == 0 {
        faults.push(Fault::required(path, "must specify a volume type"));
    }
}

fn required(source: &Value, fields: &[&str], path: Path<'_>, faults: &mut Vec<Fault>) {
    for field in fields.iter().filter(|field| text(source, field).is_empty()) {
        faults.push(Fault::required(path.child(field), ""));
    }
}

fn of_kind(kind: &str, source: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    match kind {
        "emptyDir" => empty_dir(source, path, faults),
        "hostPath" => host_path(source, path, faults),
        "gitRepo" => {
            required(source, &["repository"], path, faults);
            descending(text(source, "directory"), path.child("directory"), faults);
        }
        "secret" => {
            required(source, &["secretName"], path, faults);
            mode(source, "defaultMode", path, faults);
            keys(source, path, faults);
        }
        "configMap" => {
            required(source, &["name"], path, faults);
            mode(source, "defaultMode", path, faults);
            keys(source, path, faults);
        }
        "downwardAPI" => {
            mode(source, "defaultMode", path, faults);
            downward(source, path, faults);
        }
        "projected" => {
            mode(source, "defaultMode", path, faults);
            projected(source, path, faults);
        }
        "persistentVolumeClaim" => required(source, &["claimName"], path, faults),
        "nfs" => nfs(source, path, faults),
        "iscsi" => {
            required(source, &["targetPortal", "iqn"], path, faults);
        }
        "csi" => csi(source, path, faults),
        "image" => {
            required(source, &["reference"], path, faults);
            let policy = text(source, "pullPolicy");
            let known = ["Always", "IfNotPresent", "Never"];
            if !known.contains(&policy) {
                faults.push(Fault::not_supported(
                    path.child("pullPolicy"),
                    policy,
                    &known,
                ));
            }
        }
        "awsElasticBlockStore" | "cinder" | "portworxVolume" => {
            required(source, &["volumeID"], path, faults)
        }
        "gcePersistentDisk" => required(source, &["pdName"], path, faults),
        "glusterfs" => required(source, &["endpoints", "path"], path, faults),
        "azureFile" => required(source, &["secretName", "shareName"], path, faults),
        "azureDisk" => azure_disk(source, path, faults),
        "vsphereVolume" => required(source, &["volumePath"], path, faults),
        "photonPersistentDisk" => required(source, &["pdID"], path, faults),
        "scaleIO" => required(source, &["gateway", "system", "volumeName"], path, faults),
        "flexVolume" => required(source, &["driver"], path, faults),
        "quobyte" => required(source, &["registry", "volume"], path, faults),
        "storageos" => required(source, &["volumeName"], path, faults),
        "rbd" | "cephfs" => {
            if list(source, "monitors").is_empty() {
                faults.push(Fault::required(path.child("monitors"), ""));
            }
            if kind == "rbd" {
                required(source, &["image"], path, faults);
            }
        }
        "ephemeral" => ephemeral(source, path, faults),
        _ => {}
    }
}

fn empty_dir(source: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let size = text(source, "sizeLimit");
    if size.starts_with('-') {
        faults.push(Fault::forbidden(
            path.child("sizeLimit"),
            "SizeLimit field must be a valid resource quantity",
        ));
    }
}

fn host_path(source: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let host = text(source, "path");
    match host {
        "" => faults.push(Fault::required(path.child("path"), "")),
        _ => no_backsteps(host, path.child("path"), faults),
    }
    let known = [
        "",
        "DirectoryOrCreate",
        "Directory",
        "FileOrCreate",
        "File",
        "Socket",
        "CharDevice",
        "BlockDevice",
    ];
    let kind = text(source, "type");
    if !known.contains(&kind) {
        let mut sorted = known;
        sorted.sort_unstable();
        faults.push(Fault::not_supported(path.child("type"), kind, &sorted));
    }
}

fn nfs(source: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    required(source, &["server", "path"], path, faults);
    let export = text(source, "path");
    if !export.starts_with('/') {
        faults.push(Fault::invalid(
            path.child("path"),
            export,
            "must be an absolute path",
        ));
    }
}

fn csi(source: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let driver = text(source, "driver");
    let driver_path = path.child("driver");
    if driver.is_empty() {
        faults.push(Fault::required(driver_path, ""));
    }
    if driver.len() > 63 {
        faults.push(Fault::too_long(driver_path, 63));
    }
    let problems = names::dns1123_subdomain(&driver.to_lowercase()).into_iter();
    faults.extend(problems.map(|problem| Fault::invalid(driver_path, driver, problem)));
    let reference = &source["nodePublishSecretRef"];
    if reference.is_object() && text(reference, "name").is_empty() {
        faults.push(Fault::required(path.child("nodePublishSecretRef.name"), ""));
    }
}

fn azure_disk(source: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    required(source, &["diskName", "diskURI"], path, faults);
    let uri = text(source, "diskURI");
    let managed = text(source, "kind") == "Managed";
    if !managed && !uri.starts_with("https://") && !uri.is_empty() {
        let known =
            ["https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"];
        faults.push(Fault::not_supported(path.child("diskURI"), uri, &known));
    }
    for (field, known) in [
        ("cachingMode", ["None", "ReadOnly", "ReadWrite"]),
        ("kind", ["Dedicated", "Managed", "Shared"]),
    ] {
        let word = text(source, field);
        if !known.contains(&word) {
            faults.push(Fault::not_supported(path.child(field), word, &known));
        }
    }
}

const ACCESS_MODES: [&str; 4] = [
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

fn ephemeral(source: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let template = &source["volumeClaimTemplate"];
    if !template.is_object() {
        faults.push(Fault::required(path.child("volumeClaimTemplate"), ""));
        return;
    }
    let path = path.child("volumeClaimTemplate");
    let path = path.child("spec");
    let spec = &template["spec"];
    let modes = list(spec, "accessModes");
    if modes.is_empty() {
        faults.push(Fault::required(
            path.child("accessModes"),
            "at least 1 access mode is required",
        ));
    }
    for mode in modes
        .iter()
        .filter_map(serde_json::Value::as_str)
        .filter(|mode| !ACCESS_MODES.contains(mode))
    {
        faults.push(Fault::not_supported(
            path.child("accessModes"),
            mode,
            &ACCESS_MODES,
        ));
    }
    let storage = &spec["resources"]["requests"]["storage"];
    match storage.as_str() {
        None => faults.push(Fault::required(path.child("resources[storage]"), "")),
        Some(amount) => {
            if amount.starts_with('-') || amount == "0" {
                faults.push(Fault::invalid(
                    path.child("resources[storage]"),
                    amount,
                    "must be greater than zero",
                ));
            }
        }
    }
}

fn mode(holder: &Value, field: &str, path: Path<'_>, faults: &mut Vec<Fault>) {
    if let Some(mode) = holder[field]
        .as_i64()
        .filter(|mode| !(0..=0o777).contains(mode))
    {
        let text = "must be a number between 0 and 0777 (octal), both inclusive";
        faults.push(Fault::invalid(path.child(field), mode, text));
    }
}

fn keys(source: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let list_path = path.child("items");
    for (index, item) in list(source, "items").iter().enumerate() {
        let path = list_path.index(index);
        required(item, &["key"], path, faults);
        file_path(item, path, faults);
        mode(item, "mode", path, faults);
    }
}

fn file_path(item: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let file = text(item, "path");
    match file {
        "" => faults.push(Fault::required(path.child("path"), "")),
        _ => non_reserved(file, path.child("path"), faults),
    }
}

fn downward(source: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let list_path = path.child("items");
    for (index, item) in list(source, "items").iter().enumerate() {
        downward_item(item, list_path.index(index), faults);
    }
}

fn downward_item(item: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    file_path(item, path, faults);
    match (
        item["fieldRef"].is_object(),
        item["resourceFieldRef"].is_object(),
    ) {
        (true, resource) => {
            env::field(
                &item["fieldRef"],
                &env::FILE_FIELDS,
                path.child("fieldRef"),
                faults,
            );
            if resource {
                let text = "fieldRef and resourceFieldRef can not be specified simultaneously";
                faults.push(Fault::invalid(path, "resource", text));
            }
        }
        (false, true) => env::resource_field(
            &item["resourceFieldRef"],
            true,
            path.child("resourceFieldRef"),
            faults,
        ),
        (false, false) => faults.push(Fault::required(
            path,
            "one of fieldRef and resourceFieldRef is required",
        )),
    }
    mode(item, "mode", path, faults);
}

fn projected(source: &Value, whole: Path<'_>, faults: &mut Vec<Fault>) {
    let path = whole;
    let list_path = path.child("sources");
    let mut paths = BTreeSet::new();
    for (index, part) in list(source, "sources").iter().enumerate() {
        let path = list_path.index(index);
        let mut found = 0;
        for kind in [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ] {
            if !part[kind].is_object() {
                continue;
            }
            found += 1;
            if found > 1 {
                faults.push(Fault::forbidden(
                    path,
                    "may not specify more than 1 volume type",
                ));
                continue;
            }
            let (projection, part_path) = (&part[kind], path.child(kind));
            match kind {
                "secret" | "configMap" => {
                    required(projection, &["name"], part_path, faults);
                    keys(projection, part_path, faults);
                }
                "downwardAPI" => {
                    for item in list(projection, "items") {
                        downward_item(item, part_path, faults);
                    }
                }
                "serviceAccountToken" => token(projection, part_path, faults),
                _ => {}
            }
            let own = list(projection, "items")
                .iter()
                .map(|item| text(item, "path"));
            let single = (!projection["path"].is_null()).then(|| text(projection, "path"));
            for file in own.chain(single).filter(|file| !file.is_empty()) {
                if !paths.insert(file) {
                    let shown = match kind {
                        "secret" | "configMap" => text(projection, "name"),
                        _ => file,
                    };
                    faults.push(Fault::invalid(whole, shown, "conflicting duplicate paths"));
                }
            }
        }
    }
}

fn token(projection: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let expiration = projection["expirationSeconds"].as_i64().unwrap_or(0);
    let expiration_path = path.child("expirationSeconds");
    if expiration < 600 {
        let text = "may not specify a duration less than 10 minutes";
        faults.push(Fault::invalid(expiration_path, expiration, text));
    } else if expiration > 1 << 32 {
        let text = "may not specify a duration larger than 2^32 seconds";
        faults.push(Fault::invalid(expiration_path, expiration, text));
    }
    file_path(projection, path, faults);
}

/// A path that stays below where it starts.
pub(super) fn descending(target: &str, path: Path<'_>, faults: &mut Vec<Fault>) {
    if target.starts_with('/') {
        faults.push(Fault::invalid(path, target, "must be a relative path"));
    }
    no_backsteps(target, path, faults);
}

fn no_backsteps(target: &str, path: Path<'_>, faults: &mut Vec<Fault>) {
    if target.split('/').any(|step| step == "..") {
        faults.push(Fault::invalid(path, target, "must not contain '..'"));
    }
}

/// A path that leaves alone the names with which files are replaced at once.
fn non_reserved(target: &str, path: Path<'_>, faults: &mut Vec<Fault>) {
    descending(target, path, faults);
    if target.starts_with("..") && !target.starts_with("../") {
        faults.push(Fault::invalid(path, target, "must not start with '..'"));
    }
}

/// `volumeMounts` and `volumeDevices` of a container.
pub(super) fn mounts(
    container: &Value,
    volumes: &BTreeSet<&str>,
    path: Path<'_>,
    faults: &mut Vec<Fault>,
) {
    let devices: BTreeSet<&str> = list(container, "volumeDevices")
        .iter()
        .map(|device| text(device, "devicePath"))
        .collect();
    let device_names: BTreeSet<&str> = list(container, "volumeDevices")
        .iter()
        .map(|device| text(device, "name"))
        .collect();
    let list_path = path.child("volumeMounts");
    let mut points = BTreeSet::new();
    for (index, mount) in list(container, "volumeMounts").iter().enumerate() {
        let path = list_path.index(index);
        let name = text(mount, "name");
        if name.is_empty() {
            faults.push(Fault::required(path.child("name"), ""));
        }
        if !volumes.contains(name) {
            faults.push(Fault::not_found(path.child("name"), name));
        }
        let point = text(mount, "mountPath");
        if point.is_empty() {
            faults.push(Fault::required(path.child("mountPath"), ""));
        }
        if !points.insert(point) {
            faults.push(Fault::invalid(
                path.child("mountPath"),
                point,
                "must be unique",
            ));
        }
        if device_names.contains(name) {
            faults.push(Fault::invalid(
                path.child("name"),
                name,
                "must not already exist in volumeDevices",
            ));
        }
        if devices.contains(point) {
            let text = "must not already exist as a path in volumeDevices";
            faults.push(Fault::invalid(path.child("mountPath"), point, text));
        }
        mount_details(container, mount, path, faults);
    }
    self::devices(container, volumes, &points, path, faults);
}

fn mount_details(container: &Value, mount: &Value, path: Path<'_>, faults: &mut Vec<Fault>) {
    let (sub_path, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
    if !sub_path.is_empty() {
        descending(sub_path, path.child("subPath"), faults);
    }
    if !expression.is_empty() {
        if !sub_path.is_empty() {
            let text = "subPathExpr and subPath are mutually exclusive";
            faults.push(Fault::invalid(path.child("subPathExpr"), expression, text));
        }
        descending(expression, path.child("subPathExpr"), faults);
    }
    let propagation = text(mount, "mountPropagation");
    if mount["mountPropagation"].is_null() {
        return;
    }
    let known = ["Bidirectional", "HostToContainer", "None"];
    if !known.contains(&propagation) {
        faults.push(Fault::not_supported(
            path.child("mountPropagation"),
            propagation,
            &known,
        ));
    }
    if propagation == "Bidirectional" && !container::is_privileged(container) {
        let text = "Bidirectional mount propagation is available only to privileged containers";
        faults.push(Fault::forbidden(path.child("mountPropagation"), text));
    }
}

fn devices(
    container: &Value,
    volumes: &BTreeSet<&str>,
    points: &BTreeSet<&str>,
    path: Path<'_>,
    faults: &mut Vec<Fault>,
) {
    let list_path = path.child("volumeDevices");
    let (mut names_seen, mut paths_seen) = (BTreeSet::new(), BTreeSet::new());
    for (index, device) in list(container, "volumeDevices").iter().enumerate() {
        let path = list_path.index(index);
        let (name, device_path) = (text(device, "name"), text(device, "devicePath"));
        if name.is_empty() {
            faults.push(Fault::required(path.child("name"), ""));
        }
        if device_path.is_empty() {
            faults.push(Fault::required(path.child("devicePath"), ""));
        }
        if !paths_seen.insert(device_path) {
            faults.push(Fault::invalid(
                path.child("devicePath"),
                device_path,
                "must be unique",
            ));
        }
        if points.contains(device_path) {
            let text = "must not already exist as a path in volumeMounts";
            faults.push(Fault::invalid(path.child("devicePath"), device_path, text));
        }
        if !device_path.is_empty() {
            no_backsteps(device_path, path.child("devicePath"), faults);
        }
        if !volumes.contains(name) {
            faults.push(Fault::not_found(path.child("name"), name));
        } else if !names_seen.insert(name) {
            faults.push(Fault::invalid(path.child("name"), name, "must be unique"));
        }
    }
}

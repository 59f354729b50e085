//! Archives that are damaged, incomplete or not what they seem: a message that names the thing, and
//! a store that is as before. Needs root.

use std::io::{Read, Write};
use std::path::Path;

use image::archive::{ScratchFile, write_scratch};
use image::{Images, Limits, LoadOptions, Source};
use jiff::Timestamp;
use oci::{Digest, ImageConfig, Reference};
use serde_json::{Value, json};

/// An archive taken apart: names and contents, in order.
type Parts = Vec<(String, Vec<u8>)>;

fn good() -> Parts {
    let mut out = Vec::new();
    write_scratch(
        &mut out,
        &[Reference::parse("me/app:1").expect("a name")],
        &[ScratchFile {
            path: "/app",
            mode: 0o755,
            content: b"program",
        }],
        ImageConfig::default(),
        Timestamp::UNIX_EPOCH,
    )
    .expect("an archive");
    let mut archive = tar::Archive::new(&out[..]);
    let entries = archive.entries().expect("an archive");
    entries
        .map(|entry| {
            let mut entry = entry.expect("an entry");
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("its content");
            (entry.path().expect("a name").display().to_string(), content)
        })
        .collect()
}

fn pack(parts: &Parts) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, path, &content[..])
            .expect("memory");
    }
    builder.into_inner().expect("memory")
}

fn part<'a>(parts: &'a mut Parts, path: &str) -> &'a mut Vec<u8> {
    &mut parts
        .iter_mut()
        .find(|(name, _)| name == path)
        .expect("the part")
        .1
}

fn edit(parts: &mut Parts, path: &str, from: &str, to: &str) {
    let content = part(parts, path);
    let text = String::from_utf8(std::mem::take(content)).expect("text");
    assert!(text.contains(from), "{text}");
    *content = text.replace(from, to).into_bytes();
}

/// A layer in the old form of `docker save`: no digest of a blob, compressed or not.
fn old_archive(layer: &[u8], diff_id: &Digest, names: &str) -> Parts {
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    );
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let manifest =
        format!(r#"[{{"Config":"{config_name}","RepoTags":{names},"Layers":["one/layer.tar"]}}]"#);
    vec![
        ("one/layer.tar".to_owned(), layer.to_vec()),
        (config_name, config.into_bytes()),
        ("manifest.json".to_owned(), manifest.into_bytes()),
    ]
}

fn layer(path: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_mode(0o644);
    header.set_size(1);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.push(b'x');
    bytes.resize(2048, 0);
    bytes
}

fn files_below(path: &Path) -> usize {
    std::fs::read_dir(path).expect("a directory").count()
}

/// Loads into a store that has an image already; the error's text.
async fn refuse(archive: &[u8], options: LoadOptions) -> String {
    let place = tempfile::tempdir().expect("a temporary directory");
    let images = Images::open(place.path()).expect("a store");
    let stays = old_archive(
        &layer("stays"),
        &Digest::of(&layer("stays")),
        r#"["stays:1"]"#,
    );
    let piped = |archive: &[u8]| Source::Reader(Box::new(std::io::Cursor::new(archive.to_vec())));
    images
        .load(piped(&pack(&stays)), LoadOptions::default())
        .await
        .expect("an image");
    let before = images.list();
    let error = images
        .load(piped(archive), options)
        .await
        .expect_err("it is refused")
        .to_string();
    assert_eq!(images.list(), before);
    for (directory, expected) in [("layers", 1), ("configs", 1), ("tmp", 0)] {
        assert_eq!(
            files_below(&place.path().join(directory)),
            expected,
            "{directory}: {error}"
        );
    }
    error
}

#[track_caller]
fn check(archive: &[u8], expected: &[&str]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let error = runtime.block_on(refuse(archive, LoadOptions::default()));
    for text in expected {
        assert!(error.contains(text), "{error}");
    }
}

fn blobs(parts: &Parts) -> Vec<String> {
    let blobs = parts.iter().map(|(path, _)| path.clone());
    blobs.filter(|path| path.starts_with("blobs/")).collect()
}

#[test]
fn every_flipped_bit_is_found() {
    let parts = good();
    let blobs = blobs(&parts);
    assert_eq!(blobs.len(), 3);
    for path in blobs {
        let mut parts = parts.clone();
        let content = part(&mut parts, &path);
        let middle = content.len() / 2;
        content[middle] ^= 1;
        check(
            &pack(&parts),
            &[&path, "digest is sha256:", "make or copy the archive again"],
        );
    }
}

#[test]
fn what_is_missing_is_named() {
    let parts = good();
    for path in &blobs(&parts)[..2] {
        let mut parts = parts.clone();
        parts.retain(|(name, _)| name != path);
        check(&pack(&parts), &[path, "is missing from the archive"]);
    }
    // Without the document of `docker save`, the manifest of the layout is needed, too.
    for path in blobs(&parts) {
        let mut parts = parts.clone();
        parts.retain(|(name, _)| *name != path && name != "manifest.json");
        check(&pack(&parts), &[&path, "is missing from the archive"]);
    }
}

#[test]
fn half_an_archive_is_no_archive() {
    let whole = pack(&good());
    for length in [600, 2000, 3000, 4000, 5000] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let error = runtime.block_on(refuse(&whole[..length], LoadOptions::default()));
        assert!(!error.is_empty());
    }
    check(&whole[..1800], &["ends in the middle of blobs/sha256/"]);
}

#[test]
fn a_layer_that_is_not_its_diff_id_is_refused() {
    let wrong = Digest::of(b"something else");
    let plain = layer("app");
    check(
        &pack(&old_archive(&plain, &wrong, r#"["old:1"]"#)),
        &[
            "layer 1 of old:1 (one/layer.tar) is damaged: diff id",
            &wrong.to_string(),
        ],
    );
    let packed = zstd::encode_all(&plain[..], 1).expect("memory");
    check(
        &pack(&old_archive(&packed, &wrong, "null")),
        &["(one/layer.tar) is damaged: diff id", &wrong.to_string()],
    );
    // More after the end of the tar is part of the layer.
    let longer = [&plain[..], &[0; 512]].concat();
    check(
        &pack(&old_archive(&longer, &Digest::of(&plain), "null")),
        &["diff id"],
    );
}

#[test]
fn a_hostile_layer_is_named_with_its_file() {
    let bad = layer("../../etc/cron.d/x");
    check(
        &pack(&old_archive(&bad, &Digest::of(&bad), r#"["evil:1"]"#)),
        &["layer 1 of evil:1 (one/layer.tar): ../../etc/cron.d/x: the name leads out of the image"],
    );
}

#[test]
fn what_is_no_image_names_the_next_step() {
    check(
        &layer("etc/passwd"),
        &["not an image archive", "`wharf image import`"],
    );
    check(b"#!/bin/sh\necho hello", &["not a tar archive"]);
    check(b"", &["is empty"]);
    let mut parts = good();
    *part(&mut parts, "manifest.json") = b"{".to_vec();
    check(
        &pack(&parts),
        &["manifest.json in the archive cannot be read"],
    );
    let mut parts = good();
    edit(&mut parts, "manifest.json", "me/app:1", "Me/App:1 x");
    check(
        &pack(&parts),
        &["the archive names an image \"Me/App:1 x\"", "--tag"],
    );
    let mut parts = good();
    edit(
        &mut parts,
        "manifest.json",
        "\"Layers\":[",
        "\"Layers\":[\"../../../etc/passwd\",",
    );
    check(
        &pack(&parts),
        &["has 2 layers, but its configuration names 1"],
    );
}

#[test]
fn an_image_for_another_machine_says_for_which() {
    let mut parts = good();
    parts.retain(|(name, _)| name != "manifest.json");
    edit(
        &mut parts,
        "index.json",
        "\"annotations\"",
        "\"platform\":{\"architecture\":\"s390x\",\"os\":\"linux\"},\"annotations\"",
    );
    check(
        &pack(&parts),
        &["no image for linux/", "only for linux/s390x"],
    );
}

#[tokio::test]
async fn one_name_is_for_one_image() {
    let mut parts = good();
    edit(
        &mut parts,
        "manifest.json",
        "[{",
        "[{\"Config\":\"none\"},{",
    );
    let options = || LoadOptions {
        name: Some(Reference::parse("x").expect("a name")),
        ..LoadOptions::default()
    };
    let error = refuse(&pack(&parts), options()).await;
    assert!(error.contains("none is missing"), "{error}");
    let (one, two) = (layer("1"), layer("2"));
    let mut both = old_archive(&one, &Digest::of(&one), "null");
    let other = old_archive(&two, &Digest::of(&two), "null");
    let first = String::from_utf8(both.pop().expect("a manifest").1).expect("text");
    let second = String::from_utf8(other[2].1.clone())
        .expect("text")
        .replace("one/", "two/");
    both.push(("two/layer.tar".to_owned(), two));
    both.push(other[1].clone());
    let manifests = format!("{},{}", &first[..first.len() - 1], &second[1..]);
    both.push(("manifest.json".to_owned(), manifests.into_bytes()));
    let error = refuse(&pack(&both), options()).await;
    assert!(
        error.contains("has 2 images, which cannot all have one name"),
        "{error}"
    );
    let limits = Limits {
        layer_bytes: 0,
        layer_members: 10,
    };
    let error = refuse(
        &pack(&both),
        LoadOptions {
            limits,
            ..LoadOptions::default()
        },
    )
    .await;
    assert!(error.contains("which is the limit"), "{error}");
}

#[tokio::test]
async fn the_same_layer_on_different_layers_is_right_on_each() {
    // A layer that has a file in a directory that it does not describe.
    let top = layer("tmp/file");
    let below = |mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_path("tmp/").expect("a short name");
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(1536, 0);
        bytes
    };
    let place = tempfile::tempdir().expect("a temporary directory");
    let images = Images::open(place.path()).expect("a store");
    for (name, layers) in [
        ("sticky:1", vec![below(0o1777), top.clone()]),
        ("private:1", vec![below(0o700), top.clone()]),
        ("alone:1", vec![top.clone()]),
    ] {
        let ids: Vec<String> = layers
            .iter()
            .map(|layer| format!("\"{}\"", Digest::of(layer)))
            .collect();
        let paths: Vec<String> = (0..layers.len())
            .map(|at| format!("\"{at}.tar\""))
            .collect();
        let config = format!(r#"{{"rootfs":{{"diff_ids":[{}]}}}}"#, ids.join(","));
        let manifest = format!(
            r#"[{{"Config":"c.json","RepoTags":["{name}"],"Layers":[{}]}}]"#,
            paths.join(",")
        );
        let mut parts: Parts = vec![
            ("c.json".into(), config.into()),
            ("manifest.json".into(), manifest.into()),
        ];
        for (at, layer) in layers.into_iter().enumerate() {
            parts.push((format!("{at}.tar"), layer));
        }
        let source = Source::Reader(Box::new(std::io::Cursor::new(pack(&parts))));
        images
            .load(source, LoadOptions::default())
            .await
            .expect("an image");
    }
    let mode = |name: &str| {
        let image = images.find(name).expect("the image");
        let key = image.layers.last().expect("a layer").hex();
        let metadata = std::fs::metadata(place.path().join("layers").join(key).join("fs/tmp"));
        std::os::unix::fs::MetadataExt::mode(&metadata.expect("a directory")) & 0o7777
    };
    assert_eq!(
        (mode("sticky:1"), mode("private:1"), mode("alone:1")),
        (0o1777, 0o700, 0o755)
    );
    assert_eq!(files_below(&place.path().join("layers")), 5);
}

#[test]
fn a_compressed_layer_that_ends_early_is_refused() {
    let plain = layer("app");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).expect("memory");
    let gzip = gzip.finish().expect("memory");
    let zstd = zstd::encode_all(&plain[..], 1).expect("memory");
    for (packed, missing) in [(&gzip, 2), (&gzip, 20), (&zstd, 1), (&zstd, 20)] {
        let short = &packed[..packed.len() - missing];
        check(
            &pack(&old_archive(short, &Digest::of(&plain), r#"["old:1"]"#)),
            &["layer 1 of old:1 (one/layer.tar)", "damaged"],
        );
    }
}

/// An OCI layout with more indexes: `index.json` lists the first of `indexes`, which stand before
/// what they list.
fn layout(mut parts: Parts, indexes: &[Value]) -> Vec<u8> {
    parts.retain(|(name, _)| name != "manifest.json");
    for index in indexes {
        let content = index.to_string().into_bytes();
        parts.push((
            format!("blobs/sha256/{}", Digest::of(&content).hex()),
            content,
        ));
    }
    let top = json!({"schemaVersion": 2, "manifests": [listed(&indexes[0])]});
    *part(&mut parts, "index.json") = top.to_string().into_bytes();
    pack(&parts)
}

fn listed(index: &Value) -> Value {
    let content = index.to_string();
    json!({
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": Digest::of(content.as_bytes()).to_string(), "size": content.len(),
        "annotations": {"io.containerd.image.name": "docker.io/me/many:1"},
    })
}

/// A manifest that is listed and not there.
fn absent(os: &str, architecture: &str) -> Value {
    json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(architecture.as_bytes()).to_string(), "size": 7,
        "platform": {"os": os, "architecture": architecture},
    })
}

#[tokio::test]
async fn of_many_platforms_this_machine_s_is_taken() {
    let mut parts = good();
    let index: Value = serde_json::from_slice(part(&mut parts, "index.json")).expect("an index");
    let mut ours = index["manifests"][0].clone();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    ours["platform"] = json!({"os": "linux", "architecture": architecture});
    let mut provenance = absent("unknown", "unknown");
    provenance["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let inner = json!({"schemaVersion": 2, "manifests": [
        absent("linux", "s390x"), absent("windows", architecture), ours,
    ]});
    let mut nested = listed(&inner);
    nested["annotations"] = json!({});
    let outer = json!({"schemaVersion": 2, "manifests": [
        absent("linux", "riscv64"), provenance, nested, absent("linux", "ppc64le"),
    ]});
    let archive = layout(parts, &[outer, inner]);
    let place = tempfile::tempdir().expect("a temporary directory");
    let images = Images::open(place.path()).expect("a store");
    let source = Source::Reader(Box::new(std::io::Cursor::new(archive)));
    let loaded = images
        .load(source, LoadOptions::default())
        .await
        .expect("an image");
    let names: Vec<_> = loaded.iter().flat_map(|one| &one.reference).collect();
    assert_eq!(names, [&Reference::parse("me/many:1").expect("a name")]);
}

#[test]
fn indexes_that_list_each_other_over_and_over_are_not_followed_for_ever() {
    let others = vec![absent("linux", "s390x"); 200];
    let mut indexes = vec![json!({"schemaVersion": 2, "manifests": others})];
    for _ in 0..3 {
        let below = vec![listed(&indexes[0]); 200];
        indexes.insert(0, json!({"schemaVersion": 2, "manifests": below}));
    }
    check(
        &layout(good(), &indexes),
        &["the archive lists more than 10,000 manifests"],
    );
    let mut indexes = vec![json!({"schemaVersion": 2, "manifests": []})];
    for _ in 0..5 {
        indexes.insert(
            0,
            json!({"schemaVersion": 2, "manifests": [listed(&indexes[0])]}),
        );
    }
    check(
        &layout(good(), &indexes),
        &["the archive has indexes within indexes without end"],
    );
}

//! The store from outside: archives in, names, roots on real overlay mounts, restarts. Needs root.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use image::archive::{ScratchFile, write_directory, write_scratch};
use image::{
    Images, ImportOptions, Limits, LoadError, LoadOptions, Loaded, OpenError, Progress,
    RemoveError, RootError, Source, Use, lookup_user,
};
use jiff::Timestamp;
use oci::{Digest, ImageConfig, Reference};
use parking_lot::Mutex;
use tempfile::TempDir;

/// A directory of the test's own. A test that fails leaves no mounts.
struct Place(TempDir);

impl Place {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Ok(roots) = fs::read_dir(self.path().join("images/roots")) else {
            return;
        };
        for root in roots.flatten() {
            let flags = rustix::mount::UnmountFlags::DETACH;
            let _ = rustix::mount::unmount(root.path().join("rootfs"), flags);
        }
    }
}

fn place() -> Place {
    Place(tempfile::tempdir().expect("a temporary directory"))
}

fn name(text: &str) -> Reference {
    Reference::parse(text).expect("a name")
}

fn open(place: &Place) -> Images {
    Images::open(place.path().join("images")).expect("a store")
}

fn scratch(names: &[&str], files: &[(&str, &str)]) -> Vec<u8> {
    let names: Vec<Reference> = names.iter().map(|text| name(text)).collect();
    let files: Vec<ScratchFile<'_>> = files
        .iter()
        .map(|(path, content)| ScratchFile {
            path,
            mode: 0o755,
            content: content.as_bytes(),
        })
        .collect();
    let config = ImageConfig {
        entrypoint: vec!["/app".to_owned()],
        exposed_ports: vec!["3000/tcp".to_owned()],
        ..ImageConfig::default()
    };
    let mut out = Vec::new();
    write_scratch(&mut out, &names, &files, config, Timestamp::UNIX_EPOCH).expect("an archive");
    out
}

fn piped(archive: &[u8]) -> Source {
    Source::Reader(Box::new(std::io::Cursor::new(archive.to_vec())))
}

async fn load(images: &Images, archive: &[u8]) -> Result<Vec<Loaded>, LoadError> {
    images.load(piped(archive), LoadOptions::default()).await
}

/// What is in the store's directories, by number.
fn census(place: &Place) -> (usize, usize, usize) {
    let count = |name: &str| {
        fs::read_dir(place.path().join("images").join(name))
            .expect("a directory")
            .count()
    };
    (count("configs"), count("layers"), count("tmp"))
}

#[tokio::test]
async fn what_is_loaded_is_listed_and_found_by_every_name() {
    let place = place();
    let images = open(&place);
    let archive = scratch(
        &["me/hello:v1", "hello"],
        &[("/app", "#!"), ("/etc/x/y", "z")],
    );
    let loaded = load(&images, &archive).await.expect("an image");
    let names: Vec<String> = loaded
        .iter()
        .flat_map(|loaded| &loaded.reference)
        .map(Reference::to_string)
        .collect();
    assert_eq!(
        names,
        ["docker.io/me/hello:v1", "docker.io/library/hello:latest"]
    );
    let id = loaded[0].id.clone();
    for text in [
        "hello",
        "hello:latest",
        "docker.io/library/hello",
        "me/hello:v1",
        &id.to_string(),
        id.hex(),
        id.short(),
    ] {
        assert_eq!(
            images.find(text).map(|image| image.id.clone()),
            Some(id.clone()),
            "{text}"
        );
    }
    for text in ["hello:v1", "me/hello", "", "zzz", "HELLO", "sha256:00"] {
        assert_eq!(images.find(text), None, "{text}");
    }
    let image = images.resolve(&name("hello")).expect("the image");
    assert_eq!(image.config.entrypoint, ["/app"]);
    assert_eq!(image.config.exposed_ports, ["3000/tcp"]);
    assert_eq!(image.created, Some(Timestamp::UNIX_EPOCH));
    assert_eq!(image.references.len(), 2);
    assert_eq!(image.size, 3);
    assert_eq!(images.list(), std::slice::from_ref(&image));
    assert_eq!(census(&place), (1, 1, 0));
    drop(images);
    let again = open(&place);
    assert_eq!(again.list(), [image]);
}

#[tokio::test]
async fn every_wrapping_gives_the_same_image() {
    let archive = scratch(&["a"], &[("/app", "hello")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).expect("memory");
    let gzip = gzip.finish().expect("memory");
    let zstd = zstd::encode_all(&archive[..], 3).expect("memory");
    let mut ids = BTreeSet::new();
    for content in [&archive, &gzip, &zstd] {
        let place = place();
        let images = open(&place);
        let file = place.path().join("archive");
        fs::write(&file, content).expect("a file");
        let by_path = images
            .load(file, LoadOptions::default())
            .await
            .expect("an image");
        let by_pipe = load(&images, content).await.expect("the same image");
        assert_eq!(by_path, by_pipe);
        ids.insert(by_path[0].id.clone());
        assert_eq!(census(&place), (1, 1, 0));
    }
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn a_name_moves_to_the_newer_image() {
    let place = place();
    let images = open(&place);
    let first = load(&images, &scratch(&["a:1"], &[("/app", "1")]))
        .await
        .expect("an image");
    let second = load(&images, &scratch(&["a:1"], &[("/app", "2")]))
        .await
        .expect("an image");
    assert_eq!(second[0].replaced, Some(first[0].id.clone()));
    assert_eq!(images.find("a:1").expect("named").id, second[0].id);
    let old = images.find(first[0].id.hex()).expect("it stays");
    assert!(old.references.is_empty());
    let options = LoadOptions {
        name: Some(name("b:2")),
        ..LoadOptions::default()
    };
    let third = images
        .load(piped(&scratch(&["a:1"], &[("/app", "3")])), options)
        .await
        .expect("an image");
    assert_eq!(third[0].reference, Some(name("b:2")));
    assert_eq!(images.find("a:1").expect("named").id, second[0].id);
}

#[tokio::test]
async fn progress_ends_with_all_of_the_layer() {
    let place = place();
    let images = open(&place);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let options = LoadOptions {
        progress: Some({
            let seen = seen.clone();
            Arc::new(move |progress| seen.lock().push(progress))
        }),
        ..LoadOptions::default()
    };
    let archive = scratch(&["a"], &[("/app", &"x".repeat(3 << 20))]);
    images
        .load(piped(&archive), options.clone())
        .await
        .expect("an image");
    let reports = std::mem::take(&mut *seen.lock());
    let last = reports.last().expect("reports");
    assert!(
        matches!(last, Progress::Layer { done, total, .. } if done == total),
        "{last:?}"
    );
    assert!(reports.len() > 4, "{reports:?}");
    images
        .load(piped(&archive), options)
        .await
        .expect("the same image");
    let last = seen.lock().pop().expect("reports");
    assert!(matches!(last, Progress::Exists { .. }), "{last:?}");
}

#[tokio::test]
async fn roots_are_overlays_that_survive_the_store() {
    let place = place();
    let images = open(&place);
    load(
        &images,
        &scratch(
            &["a"],
            &[("/app", "hello"), ("/etc/passwd", "u:x:7:8::/home/u:\n")],
        ),
    )
    .await
    .expect("an image");
    let image = images.find("a").expect("the image");
    let root = images.root(&image, "c1").await.expect("a root");
    assert_eq!(
        images.root(&image, "c1").await.expect("the same root"),
        root
    );
    let target = images.mount_root("c1").await.expect("a mount");
    assert_eq!(
        images.mount_root("c1").await.expect("the same mount"),
        target
    );
    assert_eq!(
        fs::read_to_string(target.join("app")).expect("the file"),
        "hello"
    );
    assert_eq!(
        fs::metadata(&target).expect("the root").mode() & 0o7777,
        0o755
    );
    assert_eq!(lookup_user(&target, "u").expect("a user").uid, 7);
    let empty = images.root_size("c1", u64::MAX).await.expect("a size");
    fs::write(target.join("app"), vec![b'x'; 1 << 16]).expect("a change");
    assert!(images.root_size("c1", u64::MAX).await.expect("a size") >= empty + (1 << 16));
    let layer = root.lower[0].join("app");
    assert_eq!(
        fs::read_to_string(layer).expect("the layer's file"),
        "hello"
    );

    // A second container does not see it.
    images.root(&image, "c2").await.expect("a root");
    let other = images.mount_root("c2").await.expect("a mount");
    assert_eq!(
        fs::read_to_string(other.join("app")).expect("the file"),
        "hello"
    );

    // The next process finds both, mounted.
    drop(images);
    let images = open(&place);
    assert_eq!(images.roots(), ["c1", "c2"]);
    assert_eq!(images.mount_root("c1").await.expect("the mount"), target);
    assert_eq!(
        fs::metadata(target.join("app")).expect("the file").len(),
        1 << 16
    );

    // Without its image a root goes on.
    images.remove("a", true, |_| None).await.expect("removed");
    assert_eq!(census(&place), (0, 1, 0));
    images.unmount_root("c1").await.expect("unmounted");
    images.unmount_root("c1").await.expect("nothing to do");
    assert!(!target.join("app").exists());
    images.mount_root("c1").await.expect("mounted again");
    assert_eq!(
        fs::metadata(target.join("app")).expect("the file").len(),
        1 << 16
    );
    for id in ["c1", "c2"] {
        images.remove_root(id).await.expect("removed");
        images.remove_root(id).await.expect("nothing to do");
    }
    assert_eq!(census(&place), (0, 0, 0));
    assert!(images.roots().is_empty());
    let error = images.root(&image, "c3").await.expect_err("no image");
    assert!(matches!(error, RootError::ImageGone(_)), "{error}");
}

#[tokio::test]
async fn roots_have_plain_names() {
    let place = place();
    let images = open(&place);
    load(&images, &scratch(&["a"], &[("/app", "")]))
        .await
        .expect("an image");
    let image = images.find("a").expect("the image");
    for id in ["", ".", "..", "../x", "a/b", "a b", ".x", &"x".repeat(129)] {
        assert!(
            matches!(images.root(&image, id).await, Err(RootError::Id(_))),
            "{id}"
        );
    }
    assert!(matches!(
        images.mount_root("none").await,
        Err(RootError::NotFound(_))
    ));
}

#[tokio::test]
async fn an_image_without_layers_has_an_empty_root() {
    let place = place();
    let images = open(&place);
    let mut builder = tar::Builder::new(Vec::new());
    let config = br#"{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#;
    for (path, content) in [
        ("c.json", &config[..]),
        (
            "manifest.json",
            br#"[{"Config":"c.json","RepoTags":["empty:1"],"Layers":null}]"#,
        ),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder
            .append_data(&mut header, path, content)
            .expect("memory");
    }
    load(&images, &builder.into_inner().expect("memory"))
        .await
        .expect("an image");
    let image = images.find("empty:1").expect("the image");
    images.root(&image, "c").await.expect("a root");
    let target = images.mount_root("c").await.expect("a mount");
    fs::write(target.join("x"), "y").expect("a file");
    images.remove_root("c").await.expect("removed");
}

#[tokio::test]
async fn a_tree_becomes_an_image_and_a_tar_becomes_an_image() {
    let place = place();
    let tree = place.path().join("tree");
    fs::create_dir_all(tree.join("bin")).expect("a directory");
    fs::write(tree.join("bin/busybox"), "program").expect("a file");
    fs::set_permissions(tree.join("bin/busybox"), fs::Permissions::from_mode(0o4755))
        .expect("a mode");
    std::os::unix::fs::symlink("busybox", tree.join("bin/sh")).expect("a link");
    fs::create_dir(tree.join("tmp")).expect("a directory");
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("a mode");
    std::os::unix::fs::chown(tree.join("tmp"), Some(5), Some(6)).expect("an owner");
    let mut archive = Vec::new();
    write_directory(
        &mut archive,
        &[name("box")],
        &tree,
        ImageConfig::default(),
        Timestamp::UNIX_EPOCH,
    )
    .expect("an archive");
    let images = open(&place);
    load(&images, &archive).await.expect("an image");

    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", &tree).expect("memory");
    let imported = images
        .import(
            piped(
                &zstd::encode_all(&builder.into_inner().expect("memory")[..], 1).expect("memory"),
            ),
            ImportOptions {
                name: Some(name("imported:1")),
                config: ImageConfig::default(),
                message: "Imported from -".to_owned(),
                created: Timestamp::UNIX_EPOCH,
                limits: Limits::default(),
            },
        )
        .await
        .expect("an image");
    assert_eq!(imported.reference, Some(name("imported:1")));
    for image in ["box", "imported:1"] {
        let image = images.find(image).expect("the image");
        images.root(&image, "c").await.expect("a root");
        let target = images.mount_root("c").await.expect("a mount");
        let stat = |path: &str| fs::symlink_metadata(target.join(path)).expect("the file");
        assert_eq!(stat("bin/busybox").mode() & 0o7777, 0o4755);
        assert_eq!(
            fs::read_link(target.join("bin/sh")).expect("the link"),
            Path::new("busybox")
        );
        assert_eq!(
            (
                stat("tmp").mode() & 0o7777,
                stat("tmp").uid(),
                stat("tmp").gid()
            ),
            (0o1777, 5, 6)
        );
        images.remove_root("c").await.expect("removed");
    }
}

#[tokio::test]
async fn removal_follows_the_names() {
    let place = place();
    let images = open(&place);
    load(&images, &scratch(&["a:1", "b:1"], &[("/app", "1")]))
        .await
        .expect("an image");
    let busy = |_: &Digest| {
        Some(Use {
            container: "c".to_owned(),
            running: true,
        })
    };
    let error = images
        .remove("nope", false, |_| None)
        .await
        .expect_err("no such image");
    assert_eq!(error.to_string(), "No such image: nope");
    let removed = images.remove("a:1", false, busy).await.expect("a name");
    assert_eq!(
        (removed.untagged, removed.deleted),
        (vec![name("a:1")], None)
    );
    let error = images.remove("b:1", false, busy).await.expect_err("in use");
    assert!(matches!(error, RemoveError::LastName { .. }), "{error}");
    let id = images.find("b:1").expect("it stays").id.clone();
    images.tag(&id, name("c:1")).await.expect("another name");
    let removed = images
        .remove(id.short(), true, |_| None)
        .await
        .expect("the image");
    assert_eq!(removed.untagged, [name("b:1"), name("c:1")]);
    assert_eq!(removed.deleted, Some(id));
    assert!(images.list().is_empty());
    assert_eq!(census(&place), (0, 0, 0));
}

#[tokio::test]
async fn one_process_at_a_time() {
    let place = place();
    let images = open(&place);
    let error = Images::open(place.path().join("images"))
        .err()
        .expect("locked");
    assert!(matches!(error, OpenError::Locked(_)));
    assert!(
        error
            .to_string()
            .contains("in use by another Wharf process"),
        "{error}"
    );
    drop(images);
    open(&place);
}

#[tokio::test]
async fn what_a_killed_process_left_is_taken_away() {
    let place = place();
    let images = open(&place);
    load(&images, &scratch(&["a"], &[("/app", "1")]))
        .await
        .expect("an image");
    let before = census(&place);
    drop(images);
    let images_directory = place.path().join("images");
    let stray = Digest::of(b"stray");
    fs::create_dir_all(
        images_directory
            .join("layers")
            .join(stray.hex())
            .join("fs/deep"),
    )
    .expect("a directory");
    fs::create_dir_all(images_directory.join("tmp/load-1/x/fs")).expect("a directory");
    fs::write(
        images_directory
            .join("configs")
            .join(format!("{}.json", stray.hex())),
        "{}",
    )
    .expect("a file");
    fs::create_dir_all(images_directory.join("roots/half/upper")).expect("a directory");
    let images = open(&place);
    assert_eq!(census(&place), before);
    assert!(images.roots().is_empty());
    assert!(!images_directory.join("roots/half").exists());
    assert!(images.find("a").is_some());
}

#[tokio::test]
async fn a_damaged_image_does_not_hide_the_others() {
    let place = place();
    let images = open(&place);
    load(&images, &scratch(&["good"], &[("/app", "1")]))
        .await
        .expect("an image");
    for (at, text) in ["bad:1", "bad:2"].iter().enumerate() {
        load(
            &images,
            &scratch(&[text], &[("/app", &format!("bad {at}"))]),
        )
        .await
        .expect("an image");
    }
    let (one, two) = (
        images.find("bad:1").expect("it"),
        images.find("bad:2").expect("it"),
    );
    drop(images);
    let directory = place.path().join("images");
    fs::write(
        directory.join(format!("configs/{}.json", one.id.hex())),
        "{}",
    )
    .expect("a file");
    fs::remove_dir_all(directory.join(format!("layers/{}/fs", two.layers[0].hex())))
        .expect("a layer");
    let images = open(&place);
    let left: Vec<_> = images
        .list()
        .iter()
        .flat_map(|image| image.references.clone())
        .collect();
    assert_eq!(left, [name("good")]);
    load(&images, &scratch(&["bad:2"], &[("/app", "bad 1")]))
        .await
        .expect("loaded again");
    assert_eq!(images.find("bad:2"), Some(two));
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_is_given_up() {
    let place = place();
    let images = open(&place);
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let source = Source::Reader(Box::new(reader));
    let archive = scratch(&["a"], &[("/app", &"x".repeat(1 << 20))]);
    let loading = tokio::spawn({
        let images = images.clone();
        async move {
            images
                .load(source, LoadOptions::default())
                .await
                .map(|_| ())
        }
    });
    let writing = tokio::task::spawn_blocking(move || {
        writer
            .write_all(&archive[..archive.len() / 2])
            .expect("a reader");
        (writer, archive)
    });
    let (mut writer, archive) = writing.await.expect("written");
    loading.abort();
    assert!(loading.await.expect_err("aborted").is_cancelled());
    // The reader may be gone by now, or be about to go.
    let _ = writer.write_all(&archive[archive.len() / 2..]);
    drop(writer);
    drop(images);
    // The lock is free when the last of it has ended.
    let images = tokio::task::spawn_blocking(move || {
        loop {
            match Images::open(place.path().join("images")) {
                Ok(images) => return (images, place),
                Err(OpenError::Locked(_)) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        }
    });
    let (images, place) = images.await.expect("a store");
    assert!(images.list().is_empty());
    assert_eq!(census(&place), (0, 0, 0));
}

#[tokio::test]
async fn loads_and_removals_side_by_side_leave_what_they_should() {
    let place = place();
    let images = open(&place);
    let tasks: Vec<_> = (0..24)
        .map(|task| {
            let images = images.clone();
            // Four images, each loaded six times over, half of them taken away again.
            let archive = scratch(
                &[&format!("n{task}:1")],
                &[("/app", &format!("{}", task % 4))],
            );
            tokio::spawn(async move {
                load(&images, &archive).await.expect("an image");
                if task % 2 == 0 {
                    let name = format!("n{task}:1");
                    images
                        .remove(&name, false, |_| None)
                        .await
                        .expect("its own name");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    // Tasks 0 and 2 of each four are the even ones: images 0 and 2 are gone, 1 and 3 have six names.
    let names: Vec<usize> = images
        .list()
        .iter()
        .map(|image| image.references.len())
        .collect();
    assert_eq!(names, [6, 6]);
    assert_eq!(census(&place), (2, 2, 0));
    for image in images.list() {
        images.root(&image, image.id.short()).await.expect("a root");
        let target = images.mount_root(image.id.short()).await.expect("a mount");
        assert!(target.join("app").exists());
        images.remove_root(image.id.short()).await.expect("removed");
    }
    drop(images);
    assert_eq!(open(&place).list().len(), 2);
}

/// A disk of its own, mounted where the guard of the place unmounts it.
fn small_disk(place: &Place, options: &CStr) -> PathBuf {
    let disk = place.path().join("images/roots/disk/rootfs");
    fs::create_dir_all(&disk).expect("a directory");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &disk, "tmpfs", flags, Some(options)).expect("a small disk");
    disk
}

#[tokio::test]
async fn a_full_disk_loses_nothing() {
    let place = place();
    let disk = small_disk(&place, c"size=2m");
    let images = Images::open(&disk).expect("a store");
    load(&images, &scratch(&["small:1"], &[("/app", "1")]))
        .await
        .expect("an image");
    let before = images.list();
    let large = scratch(&["large:1"], &[("/app", &"x".repeat(3 << 20))]);
    // Through a pipe there is no room for the archive; from a file, none for the layer.
    let error = load(&images, &large)
        .await
        .expect_err("a full disk")
        .to_string();
    assert!(
        error.contains("No space left on device") && error.contains("free some space"),
        "{error}"
    );
    let file = place.path().join("archive");
    fs::write(&file, &large).expect("a file");
    let error = images
        .load(file, LoadOptions::default())
        .await
        .expect_err("a full disk")
        .to_string();
    assert!(
        error.contains("(blobs/sha256/") && error.contains(": app: No space left on device"),
        "{error}"
    );
    assert_eq!(images.list(), before);
    assert_eq!(
        fs::read_dir(disk.join("tmp")).expect("a directory").count(),
        0
    );
    load(&images, &scratch(&["small:2"], &[("/app", "2")]))
        .await
        .expect("there is room again");
    drop(images);
    assert_eq!(Images::open(&disk).expect("a store").list().len(), 2);
}

#[tokio::test]
async fn what_is_larger_than_it_looks_does_not_take_the_whole_disk() {
    let place = place();
    let disk = small_disk(&place, c"size=40m");
    let images = Images::open(&disk).expect("a store");
    let zeros = vec![0; 1 << 20];
    let zeros = std::str::from_utf8(&zeros).expect("zeros are text");
    let names: Vec<String> = (0..50).map(|number| format!("/{number}")).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), zeros)).collect();
    let bomb = scratch(&["bomb:1"], &files);
    let packed = zstd::encode_all(&bomb[..], 1).expect("memory");
    assert!(packed.len() < 1 << 20, "{}", packed.len());
    // As an archive, and, from a file elsewhere, as a layer.
    let plain = place.path().join("bomb");
    fs::write(&plain, &bomb).expect("a file");
    for source in [piped(&packed), Source::Path(plain)] {
        let error = images.load(source, LoadOptions::default()).await;
        let error = error.expect_err("a bomb").to_string();
        let words = ["of the disk", "may be used"];
        assert!(words.iter().all(|words| error.contains(words)), "{error}");
        assert!(images.list().is_empty());
        let left = fs::read_dir(disk.join("tmp")).expect("a directory");
        assert_eq!(left.count(), 0);
    }
    load(&images, &scratch(&["small:1"], &[("/app", "1")]))
        .await
        .expect("there is room");
}

#[tokio::test]
async fn a_table_that_cannot_be_written_changes_nothing() {
    let place = place();
    let images = open(&place);
    load(&images, &scratch(&["a:1"], &[("/app", "1")]))
        .await
        .expect("an image");
    let before = images.list();
    let table = place.path().join("images/images.json");
    let content = fs::read(&table).expect("a table");
    fs::remove_file(&table).expect("removed");
    fs::create_dir(&table).expect("something that is in the way");
    let error = load(&images, &scratch(&["b:1"], &[("/app", "2")])).await;
    let error = error.expect_err("no table").to_string();
    assert!(error.contains("nothing was changed"), "{error}");
    assert_eq!(images.list(), before);
    drop(images);
    fs::remove_dir(&table).expect("removed");
    fs::write(&table, content).expect("the table");
    let images = open(&place);
    assert_eq!(images.list(), before);
    assert_eq!(census(&place), (1, 1, 0));
}

/// Where [`loads_until_it_is_killed`] loads to.
const KILLED_PLACE: &str = "WHARF_TEST_KILLED_PLACE";

#[tokio::test]
#[ignore = "is started, and killed, by the test below"]
async fn loads_until_it_is_killed() {
    let place = std::env::var(KILLED_PLACE).expect("the test below says where");
    let images = Images::open(place).expect("a store");
    for number in 0.. {
        let archive = scratch(&[&format!("n{number}:1")], &[("/app", &number.to_string())]);
        load(&images, &archive).await.expect("an image");
        println!("loaded {number}");
    }
}

/// Whatever it was doing: what was acknowledged is there, what is listed is whole, nothing else is left.
#[test]
fn a_killed_process_leaves_whole_images() {
    for acknowledged in 0..6 {
        let place = place();
        let mut loader = Command::new(std::env::current_exe().expect("this test"))
            .args([
                "--ignored",
                "--exact",
                "--nocapture",
                "loads_until_it_is_killed",
            ])
            .env(KILLED_PLACE, place.path().join("images"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let output = BufReader::new(loader.stdout.take().expect("a pipe"));
        let lines = output.lines().map(|line| line.expect("a line"));
        let loaded = lines.filter(|line| line.contains("loaded "));
        assert_eq!(loaded.take(acknowledged).count(), acknowledged);
        loader.kill().expect("killed");
        loader.wait().expect("ended");
        let images = open(&place);
        let all = images.list();
        for number in 0..acknowledged {
            let name = format!("n{number}:1");
            assert!(images.find(&name).is_some(), "{name} was acknowledged");
        }
        for image in &all {
            let app = place
                .path()
                .join("images/layers")
                .join(image.layers[0].hex())
                .join("fs/app");
            let content = fs::read_to_string(app).expect("the file");
            assert_eq!(image.references, [name(&format!("n{content}:1"))]);
        }
        assert_eq!(census(&place), (all.len(), all.len(), 0));
    }
}

//! Layers as an enemy would write them, and as ordinary tools do.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tar::Header;

use super::*;

mod stream;

use stream::{Entry, Stream};

/// A directory to unpack into, beside one that must not be touched.
struct Case {
    place: tempfile::TempDir,
}

impl Case {
    fn new() -> Case {
        let place = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(place.path().join("root")).expect("a directory");
        fs::create_dir(place.path().join("outside")).expect("a directory");
        fs::write(place.path().join("outside/precious"), "untouched").expect("a file");
        Case { place }
    }

    fn root(&self) -> PathBuf {
        self.place.path().join("root")
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    fn unpack(&self, stream: Stream) -> Result<Unpacked, LayerError> {
        self.unpack_within(stream, Limits::default())
    }

    fn unpack_within(&self, stream: Stream, limits: Limits) -> Result<Unpacked, LayerError> {
        let root = tree::open(&self.root()).expect("the directory");
        unpack(&stream.end()[..], root, limits)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_else(|error| format!("{path}: {error}"))
    }

    fn is_whiteout(&self, path: &str) -> bool {
        fs::symlink_metadata(self.at(path))
            .is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0)
    }

    fn is_opaque(&self, path: &str) -> bool {
        crate::place::is_opaque(&tree::open(&self.at(path)).expect("a directory"))
    }

    fn xattr(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 256];
        let length = rustix::fs::lgetxattr(self.at(path), name, &mut value[..]).ok()?;
        value.truncate(length);
        Some(value)
    }
}

impl Drop for Case {
    /// Whatever was unpacked: nothing outside has changed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path)
                .expect("a directory")
                .map(|entry| entry.expect("an entry").file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(self.place.path()), ["outside", "root"]);
        assert_eq!(names(&self.place.path().join("outside")), ["precious"]);
        let precious = self.place.path().join("outside/precious");
        assert_eq!(fs::read_to_string(&precious).expect("a file"), "untouched");
        let metadata = fs::metadata(&precious).expect("a file");
        assert_eq!((metadata.nlink(), metadata.uid()), (1, 0));
    }
}

#[track_caller]
fn refused(stream: Stream, expected: &str) {
    let case = Case::new();
    let error = case.unpack(stream).expect_err("it is refused").to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn names_do_not_lead_out() {
    let out = "the name leads out of the image";
    refused(Stream::default().file("../outside/precious", "x"), out);
    refused(Stream::default().file("a/../../outside/precious", "x"), out);
    refused(Stream::default().directory("..", 0o777), out);
    refused(Stream::default().symlink("../link", "x"), out);
    refused(Stream::default().file("/../../etc/x", "x"), out);
    refused(Stream::default().file("../.wh.outside", ""), out);
    refused(Stream::default().file("../.wh..wh..opq", ""), out);
    refused(
        Stream::default()
            .file("a", "")
            .hard_link("../outside/new", "a"),
        out,
    );
    refused(
        Stream::default()
            .pax(&[("path", b"../outside/precious")])
            .file("innocent", "x"),
        out,
    );
    let case = Case::new();
    case.unpack(
        Stream::default()
            .file("/etc/x", "1")
            .file("./a//b/../c", "2"),
    )
    .expect("unpacked");
    assert_eq!(
        (case.read("etc/x"), case.read("a/c")),
        ("1".to_owned(), "2".to_owned())
    );
}

#[test]
fn links_do_not_lead_out() {
    let case = Case::new();
    let outside = case.place.path().join("outside");
    let outside = outside.to_str().expect("a plain path");
    let stream = Stream::default()
        .symlink("absolute", outside)
        .file("absolute/precious", "evil")
        .symlink("relative", "../outside")
        .file("relative/precious", "evil")
        .symlink("file", &format!("{outside}/precious"))
        .file("file", "evil")
        .directory("relative", 0o700)
        .symlink("up", "../../../../..")
        .file("up/x", "evil")
        .file("absolute/.wh.precious", "");
    case.unpack(stream).expect("unpacked");
    // Links are followed as in a container: absolute ones from the image's root, others not above it.
    assert_eq!(case.read(&format!("{}/precious", &outside[1..])), "evil");
    assert_eq!(case.read("outside/precious"), "evil");
    assert_eq!(case.read("file"), "evil");
    assert_eq!(case.read("x"), "evil");
}

#[test]
fn hard_links_do_not_lead_out() {
    refused(
        Stream::default().hard_link("x", "../outside/precious"),
        "leads out of the image",
    );
    refused(
        Stream::default().hard_link("x", "/etc/hostname"),
        "hard link to /etc/hostname: No such file",
    );
    refused(
        Stream::default().directory("d", 0o755).hard_link("x", "d"),
        "hard link to d",
    );
    refused(Stream::default().hard_link("x", "/"), "hard link to /");
    refused(
        Stream::default()
            .symlink("s", "../outside")
            .hard_link("x", "s/precious"),
        "hard link to s/precious",
    );
    // A link to a link is a second name of the link, not of what it leads to.
    let case = Case::new();
    let outside = case.place.path().join("outside/precious");
    let stream = Stream::default()
        .symlink("s", outside.to_str().expect("a plain path"))
        .hard_link("x", "s");
    case.unpack(stream).expect("unpacked");
    assert!(
        fs::symlink_metadata(case.at("x"))
            .expect("a link")
            .is_symlink()
    );
}

#[test]
fn hard_links_share_a_file() {
    let case = Case::new();
    let stream = Stream::default()
        .file("d/a", "one")
        .symlink("l", "d")
        .hard_link("b", "l/a")
        .hard_link("b", "d/a")
        .file("c", "old")
        .hard_link("c", "d/a");
    case.unpack(stream).expect("unpacked");
    let inode = |path| fs::metadata(case.at(path)).expect("a file").ino();
    assert_eq!((inode("b"), inode("c")), (inode("d/a"), inode("d/a")));
}

#[test]
fn links_in_circles_end() {
    refused(
        Stream::default()
            .symlink("a", "b")
            .symlink("b", "a")
            .file("a/x", ""),
        "Too many levels of symbolic links",
    );
    refused(
        Stream::default().file("f", "").file("f/x", ""),
        "Not a directory",
    );
}

#[test]
fn paths_have_an_end() {
    // Each link leads far down, and each path goes through all links before.
    let deep = "d/".repeat(600);
    let mut stream = Stream::default()
        .pax(&[("path", deep.as_bytes())])
        .directory("x", 0o755);
    let mut through = String::new();
    for round in 0..8 {
        let (name, path) = (
            format!("{through}l{round}"),
            format!("{through}l{round}/{deep}"),
        );
        stream = stream
            .pax(&[("path", name.as_bytes()), ("linkpath", deep.as_bytes())])
            .symlink("x", "y")
            .pax(&[("path", path.as_bytes())])
            .directory("x", 0o755);
        through.push_str(&format!("l{round}/"));
    }
    let long = "x".repeat(300);
    refused(
        Stream::default()
            .pax(&[("path", long.as_bytes())])
            .file("short", ""),
        "File name too long",
    );
    let deep = "d/".repeat(2500);
    refused(
        Stream::default()
            .pax(&[("path", deep.as_bytes())])
            .directory("short", 0o755),
        "too long",
    );
    let case = Case::new();
    let error = case.unpack(stream).expect_err("too deep").to_string();
    assert!(error.contains("too long"), "{error}");
    // However deep it got: it can be removed.
    tree::remove_path(&case.root()).expect("removed");
    fs::create_dir(case.root()).expect("a directory");
}

#[test]
fn names_have_no_nul() {
    let nul = "the name has a NUL byte";
    refused(
        Stream::default().pax(&[("path", b"a\0b")]).file("x", ""),
        nul,
    );
    refused(
        Stream::default()
            .pax(&[("linkpath", b"a\0b")])
            .symlink("x", "y"),
        nul,
    );
    refused(
        Stream::default()
            .pax(&[("linkpath", b"a\0b")])
            .hard_link("x", "y"),
        nul,
    );
}

#[test]
fn the_root_is_a_directory() {
    refused(
        Stream::default().symlink(".", "/etc"),
        "the image's root is not a directory",
    );
    refused(
        Stream::default().file("a/..", "x"),
        "the image's root is not a directory",
    );
    let case = Case::new();
    let unpacked = case
        .unpack(Stream::default().directory("./", 0o1750))
        .expect("unpacked");
    assert!(unpacked.root_described);
    assert_eq!(
        fs::metadata(case.root()).expect("the root").mode() & 0o7777,
        0o1750
    );
}

#[test]
fn owners_modes_times_and_attributes_are_kept() {
    let case = Case::new();
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let stream = Stream::default()
        .entry(Entry {
            name: b"d/",
            kind: b'5',
            mode: 0o2770,
            uid: 10,
            gid: 20,
            modified: 500,
            ..Entry::default()
        })
        .pax(&[
            ("mtime", b"1234567890.5"),
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/../../etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.whiteout", b""),
        ])
        .entry(Entry {
            name: b"d/ping",
            mode: 0o4755,
            uid: 1000,
            gid: 1001,
            content: b"x",
            ..Entry::default()
        })
        .pax(&[("uid", b"70000"), ("gid", b"80000")])
        .entry(Entry {
            name: b"big",
            ..Entry::default()
        })
        .entry(Entry {
            name: b"l",
            kind: b'2',
            link: b"nowhere",
            uid: 5,
            gid: 6,
            modified: 7,
            ..Entry::default()
        })
        .entry(Entry {
            name: b"p",
            kind: b'6',
            mode: 0o620,
            gid: 9,
            ..Entry::default()
        });
    case.unpack(stream).expect("unpacked");
    let stat = |path| {
        let found = fs::symlink_metadata(case.at(path)).expect("it is there");
        (
            found.mode() & 0o7777,
            found.uid(),
            found.gid(),
            found.mtime(),
            found.mtime_nsec(),
        )
    };
    assert_eq!(stat("d"), (0o2770, 10, 20, 500, 0));
    assert_eq!(
        stat("d/ping"),
        (0o4755, 1000, 1001, 1_234_567_890, 500_000_000)
    );
    assert_eq!((stat("big").1, stat("big").2), (70_000, 80_000));
    assert_eq!((stat("l").1, stat("l").2, stat("l").3), (5, 6, 7));
    assert_eq!((stat("p").0, stat("p").2), (0o620, 9));
    assert_eq!(
        case.xattr("d/ping", "user.note").as_deref(),
        Some(&b"hello"[..])
    );
    assert_eq!(
        case.xattr("d/ping", "security.capability").as_deref(),
        Some(&capability[..])
    );
    for name in [
        "trusted.overlay.redirect",
        "trusted.overlay.opaque",
        "user.overlay.whiteout",
    ] {
        assert_eq!(case.xattr("d/ping", name), None, "{name}");
    }
}

#[test]
fn strange_headers_are_bounded_or_refused() {
    refused(
        Stream::default().entry(Entry {
            name: b"x",
            uid: u64::from(u32::MAX),
            ..Entry::default()
        }),
        "its owner is not one",
    );
    refused(
        Stream::default().entry(Entry {
            name: b"x",
            gid: 1 << 40,
            ..Entry::default()
        }),
        "its group is not one",
    );
    refused(
        Stream::default()
            .pax(&[("GNU.sparse.major", b"1")])
            .file("x", ""),
        "its sparse map is not one",
    );
    refused(
        Stream::default().entry(Entry {
            name: b"x",
            kind: b'M',
            ..Entry::default()
        }),
        "type 'M'",
    );
    let case = Case::new();
    case.unpack(
        Stream::default()
            .entry(Entry {
                name: b"late",
                modified: u64::MAX,
                ..Entry::default()
            })
            .pax(&[("mtime", b"-5.5")])
            .file("early", "")
            .pax(&[("mtime", b"soon")])
            .file("odd", ""),
    )
    .expect("unpacked");
    let time = |path| fs::metadata(case.at(path)).expect("a file").mtime();
    assert_eq!(
        (time("late"), time("early"), time("odd")),
        (0, 0, 1_000_000_000)
    );
}

#[test]
fn harmful_devices_are_left_out() {
    let device = |name, kind, device| Entry {
        name,
        kind,
        device,
        mode: 0o666,
        ..Entry::default()
    };
    let case = Case::new();
    let unpacked = case
        .unpack(
            Stream::default()
                .entry(device(b"dev/null", b'3', (1, 3)))
                .entry(device(b"dev/mem", b'3', (1, 1)))
                .entry(device(b"dev/sda", b'4', (8, 0)))
                .entry(device(b"hidden", b'3', (0, 0))),
        )
        .expect("unpacked");
    assert_eq!(unpacked.devices_left_out, ["dev/mem", "dev/sda", "hidden"]);
    let null = fs::metadata(case.at("dev/null")).expect("a device");
    assert_eq!(
        (null.file_type().is_char_device(), null.mode() & 0o777),
        (true, 0o666)
    );
    for path in ["dev/mem", "dev/sda", "hidden"] {
        assert!(!case.at(path).exists(), "{path}");
    }
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_else() {
    let case = Case::new();
    let unpacked = case
        .unpack(
            Stream::default()
                .file("d/.wh.gone", "")
                .file("kept", "1")
                .file(".wh.kept", "")
                .directory("dir", 0o755)
                .file("dir/x", "1")
                .file(".wh.dir", "")
                .file(".wh.back", "")
                .directory("back", 0o700)
                .file(".wh.file", "")
                .file("file", "1")
                .file(".wh.deep", "")
                .file("deep/a/b", "1")
                .directory("o", 0o755)
                .file("o/.wh..wh..opq", "")
                .file(".wh..wh.plnk", "")
                .file(".wh..wh.aufs/x", ""),
        )
        .expect("unpacked");
    assert!(case.is_whiteout("d/gone"));
    assert_eq!(case.read("kept"), "1");
    assert!(case.is_opaque("dir") && case.read("dir/x") == "1");
    assert!(case.is_opaque("back") && case.is_opaque("deep"));
    assert_eq!(
        (case.read("file"), case.read("deep/a/b")),
        ("1".to_owned(), "1".to_owned())
    );
    assert!(case.is_opaque("o") && !case.at("o/.wh..wh..opq").exists());
    assert!(!unpacked.root_opaque);
    assert_eq!(unpacked.implied, [b"d".to_vec(), b"deep/a".to_vec()]);
    let case = Case::new();
    assert!(
        case.unpack(Stream::default().file(".wh..wh..opq", ""))
            .expect("unpacked")
            .root_opaque
    );
    for name in [".wh.", "a/.wh.", ".wh..", ".wh..."] {
        refused(
            Stream::default().file(name, ""),
            "the whiteout names no file",
        );
    }
}

#[test]
fn the_last_of_several_stands() {
    let case = Case::new();
    let stream = Stream::default()
        .file("x", "a long first content")
        .file("x", "2")
        .directory("d", 0o755)
        .file("d/x", "1")
        .file("d", "now a file")
        .symlink("l", "x")
        .directory("l", 0o755)
        .file("l/y", "3")
        .directory("m", 0o700)
        .file("m/z", "4")
        .directory("m", 0o755);
    case.unpack(stream).expect("unpacked");
    assert_eq!(
        (case.read("x"), case.read("d"), case.read("l/y")),
        ("2".into(), "now a file".into(), "3".into())
    );
    assert_eq!(case.read("m/z"), "4");
    assert_eq!(
        fs::metadata(case.at("m")).expect("a directory").mode() & 0o7777,
        0o755
    );
}

#[test]
fn a_replaced_link_is_forgotten() {
    let case = Case::new();
    let stream = Stream::default()
        .directory("one", 0o755)
        .directory("two", 0o755)
        .symlink("l", "one")
        .file("l/a", "")
        .symlink("l", "two")
        .file("l/b", "");
    case.unpack(stream).expect("unpacked");
    assert!(case.at("one/a").exists() && case.at("two/b").exists());
    assert!(!case.at("one/b").exists());
}

#[test]
fn sizes_are_bounded() {
    let limits = Limits {
        layer_bytes: 1000,
        layer_members: 3,
    };
    let check = |stream: Stream, expected: &str| {
        let error = Case::new()
            .unpack_within(stream, limits)
            .expect_err("too much")
            .to_string();
        assert!(error.contains(expected), "{error}");
    };
    let x = "x".repeat(600);
    check(
        Stream::default().file("a", &x).file("b", &x),
        "which is the limit",
    );
    check(
        Stream::default()
            .file("a", "")
            .file("b", "")
            .file("c", "")
            .file("d", ""),
        "more than 3 members",
    );
    let giant = |kind, size| Entry {
        name: b"x",
        kind,
        size: Some(size),
        ..Entry::default()
    };
    check(
        Stream::default().entry(giant(b'0', u64::MAX >> 1)),
        "which is the limit",
    );
    check(
        Stream::default().entry(giant(b'5', 1 << 50)),
        "which is the limit",
    );
    refused(
        Stream::default().entry(giant(b'0', 1 << 37)),
        "bytes of the disk may be used: free some space",
    );
    refused(
        Stream::default().entry(giant(b'0', 5000)),
        "unexpected end of file",
    );
    refused(Stream::default().entry(giant(b'L', 1 << 40)), "");
}

#[test]
fn a_sparse_file_takes_no_space_and_counts_in_full() {
    let sparse = |real: u64| {
        let mut header = Header::new_gnu();
        header.set_path("holes").expect("a short name");
        header.set_entry_type(EntryType::GNUSparse);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(512);
        let gnu = header.as_gnu_mut().expect("a GNU header");
        gnu.set_real_size(real);
        gnu.sparse[0].set_offset(real - 512);
        gnu.sparse[0].set_length(512);
        header.set_cksum();
        Stream([header.as_bytes(), &[b'x'; 512][..]].concat())
    };
    let case = Case::new();
    let unpacked = case.unpack(sparse(8 << 20)).expect("unpacked");
    assert_eq!(unpacked.size, 8 << 20);
    let metadata = fs::metadata(case.at("holes")).expect("a file");
    assert_eq!(metadata.len(), 8 << 20);
    assert!(metadata.blocks() * 512 < 1 << 20, "{}", metadata.blocks());
    let content = fs::read(case.at("holes")).expect("a file");
    assert_eq!(content.iter().filter(|&&byte| byte == b'x').count(), 512);
    assert!(content.ends_with(&[b'x'; 512]));
    let error = Case::new()
        .unpack(sparse(1 << 60))
        .expect_err("a bomb")
        .to_string();
    assert!(error.contains("which is the limit"), "{error}");
}

#[test]
fn directories_above_are_made_and_named() {
    let case = Case::new();
    let stream = Stream::default()
        .file("usr/lib/x", "")
        .file("opt/y", "")
        .directory("opt", 0o711);
    let unpacked = case.unpack(stream).expect("unpacked");
    assert_eq!(unpacked.implied, [b"usr".to_vec(), b"usr/lib".to_vec()]);
    assert!(!unpacked.root_described);
    assert_eq!(
        fs::metadata(case.at("opt")).expect("a directory").mode() & 0o7777,
        0o711
    );
    assert_eq!(
        fs::metadata(case.at("usr")).expect("a directory").mode() & 0o7777,
        0o755
    );
}

#[test]
fn directories_that_are_only_implied_are_as_below() {
    let (below, above) = (Case::new(), Case::new());
    below
        .unpack(
            Stream::default()
                .entry(Entry {
                    name: b"tmp",
                    kind: b'5',
                    mode: 0o1777,
                    uid: 3,
                    gid: 4,
                    modified: 99,
                    ..Entry::default()
                })
                .directory("hidden/tmp", 0o700),
        )
        .expect("unpacked");
    let unpacked = above
        .unpack(Stream::default().file("tmp/x", "").file("new/y", ""))
        .expect("unpacked");
    let lower = [tree::open(&below.root()).expect("a directory")];
    let attributes = crate::place::describe_from(&lower, b"tmp")
        .expect("readable")
        .expect("it is there");
    let root = tree::open(&above.root()).expect("a directory");
    crate::place::redescribe(&root, b"tmp", &attributes).expect("described");
    let found = fs::metadata(above.at("tmp")).expect("a directory");
    assert_eq!(
        (
            found.mode() & 0o7777,
            found.uid(),
            found.gid(),
            found.mtime()
        ),
        (0o1777, 3, 4, 99)
    );
    assert_eq!(unpacked.implied, [b"new".to_vec(), b"tmp".to_vec()]);
    assert!(
        crate::place::describe_from(&lower, b"new")
            .expect("readable")
            .is_none()
    );
    // Behind a whiteout, or in an opaque directory, nothing shines through.
    let between = Case::new();
    between
        .unpack(
            Stream::default()
                .file(".wh.tmp", "")
                .directory("hidden", 0o755)
                .file("hidden/.wh..wh..opq", ""),
        )
        .expect("unpacked");
    let layers = [
        tree::open(&between.root()).expect("a directory"),
        tree::open(&below.root()).expect("a directory"),
    ];
    for path in [&b"tmp"[..], b"hidden/tmp"] {
        assert!(
            crate::place::describe_from(&layers, path)
                .expect("readable")
                .is_none()
        );
    }
}

#[test]
fn what_is_there_already_is_not_trusted() {
    // The directory is empty in life; even if it were not, nothing would be written through a link.
    let case = Case::new();
    symlink("../outside", case.at("l")).expect("a link");
    symlink("../outside/precious", case.at("f")).expect("a link");
    case.unpack(
        Stream::default()
            .file("f", "evil")
            .file("l/.wh.precious", "")
            .directory("l", 0o777),
    )
    .expect("unpacked");
    assert_eq!(case.read("f"), "evil");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_stream_of_entries_leads_out(
        entries in prop::collection::vec(
            (
                prop::sample::select(vec![b'0', b'1', b'2', b'5', b'6']),
                "(\\.\\./|/|a/|b/|\\.wh\\.)?(\\.\\./|a/|b/|l/)?(a|b|l|x|\\.\\.|\\.wh\\.a|\\.wh\\.\\.wh\\.\\.opq)",
                "(/|\\.\\./)?(\\.\\./|a/|l/)?(a|b|l|outside|outside/precious)",
            ),
            1..24,
        )
    ) {
        let case = Case::new();
        let mut stream = Stream::default();
        for (kind, name, target) in &entries {
            stream = stream.link(*kind, name, target);
        }
        let _ = case.unpack(stream);
        // The case itself looks whether anything outside has changed.
    }

    #[test]
    fn no_noise_is_too_strange(noise in prop::collection::vec(any::<u8>(), 0..4096), at in 0_usize..2048) {
        let case = Case::new();
        let mut bytes = Stream::default().file("a", "content").symlink("b", "a").directory("c", 0o755).0;
        let end = bytes.len().min(at + noise.len());
        if at < end {
            bytes[at..end].copy_from_slice(&noise[..end - at]);
        }
        let _ = case.unpack(Stream(bytes));
    }
}

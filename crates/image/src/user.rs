//! Who `user`, `uid`, `user:group` is in an image: `/etc/passwd` and `/etc/group` of its root, read
//! as Docker does (moby/sys/user, `GetExecUser`).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, ResolveFlags, fstat};
use rustix::io::Errno;

/// Largest id that runc takes.
const ID_MAX: i64 = i32::MAX as i64;
/// The longest passwd or group file that is read.
const FILE_LENGTH_MAX: u64 = 16 << 20;

/// A user as a process wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups: those that list the user, unless a group was asked for.
    pub groups: Vec<u32>,
    /// For `HOME`; `/` for a user that is not in the file.
    pub home: String,
}

/// Why there is no such user; the texts are Docker's.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A name that is not in the file.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// A name that is not in the file.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// A number that is none.
    #[error("uids and gids must be in range 0-2147483647")]
    Range,
    /// The root or one of the files cannot be read.
    #[error("cannot read {file} of the image: {source}")]
    Read {
        /// Which file.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Finds out who is meant in the root file system at `root`. An empty text is user 0.
///
/// A text that is a number need not be in the files. Links in the image lead within the image.
pub fn lookup_user(root: &Path, spec: &str) -> Result<User, UserError> {
    let root = tree::open(root).map_err(|source| UserError::Read {
        file: "the root",
        source,
    })?;
    let passwd = read_in_root(&root, "etc/passwd")?;
    let group = read_in_root(&root, "etc/group")?;
    resolve(spec, &passwd, &group)
}

/// A missing file is an empty one.
fn read_in_root(root: &OwnedFd, file: &'static str) -> Result<String, UserError> {
    let failed = |source: io::Error| UserError::Read { file, source };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = match tree::open_within(root.as_fd(), file, flags, resolve) {
        Ok(opened) => opened,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(failed(error.into())),
    };
    let stat = fstat(&opened).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failed(io::Error::other("it is not a file")));
    }
    let mut content = Vec::new();
    File::from(opened)
        .take(FILE_LENGTH_MAX)
        .read_to_end(&mut content)
        .map_err(failed)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

fn resolve(spec: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user_asked, group_asked) = spec.split_once(':').unwrap_or((spec, ""));
    let (uid_asked, gid_asked) = (number(user_asked), number(group_asked));
    let mut user = User {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
        home: "/".to_owned(),
    };
    let found =
        passwd
            .lines()
            .filter_map(PasswdLine::parse)
            .find(|line| match (user_asked, uid_asked) {
                ("", _) => line.uid == 0,
                (_, Some(uid)) => line.uid == uid,
                (name, None) => line.name == name,
            });
    let mut name = "";
    if let Some(line) = found {
        name = line.name;
        user.uid = id(line.uid)?;
        user.gid = id(line.gid)?;
        user.home = line.home.to_owned();
    } else if !user_asked.is_empty() {
        let uid = uid_asked.ok_or_else(|| UserError::NoUser(user_asked.to_owned()))?;
        user.uid = id(uid)?;
    }
    let mut groups = group.lines().filter_map(GroupLine::parse);
    if group_asked.is_empty() {
        if !name.is_empty() {
            user.groups = groups
                .filter(|line| line.members.split(',').any(|member| member == name))
                .map(|line| id(line.gid))
                .collect::<Result<_, _>>()?;
        }
        return Ok(user);
    }
    let found = groups.find(|line| match gid_asked {
        Some(gid) => line.gid == gid,
        None => line.name == group_asked,
    });
    user.gid = match (found, gid_asked) {
        (Some(line), _) => id(line.gid)?,
        (None, Some(gid)) => id(gid)?,
        (None, None) => return Err(UserError::NoGroup(group_asked.to_owned())),
    };
    Ok(user)
}

fn number(text: &str) -> Option<i64> {
    text.parse().ok()
}

fn id(number: i64) -> Result<u32, UserError> {
    match u32::try_from(number) {
        Ok(id) if number <= ID_MAX => Ok(id),
        _ => Err(UserError::Range),
    }
}

/// `name:password:uid:gid:comment:home:shell`; what is missing or no number counts as empty or 0.
struct PasswdLine<'a> {
    name: &'a str,
    uid: i64,
    gid: i64,
    home: &'a str,
}

impl<'a> PasswdLine<'a> {
    fn parse(line: &'a str) -> Option<PasswdLine<'a>> {
        let mut parts = parts(line)?;
        let name = parts.next()?;
        let _password = parts.next();
        let uid = parts.next().and_then(number).unwrap_or(0);
        let gid = parts.next().and_then(number).unwrap_or(0);
        let _comment = parts.next();
        Some(PasswdLine {
            name,
            uid,
            gid,
            home: parts.next().unwrap_or_default(),
        })
    }
}

/// `name:password:gid:member,member`.
struct GroupLine<'a> {
    name: &'a str,
    gid: i64,
    members: &'a str,
}

impl<'a> GroupLine<'a> {
    fn parse(line: &'a str) -> Option<GroupLine<'a>> {
        let mut parts = parts(line)?;
        let name = parts.next()?;
        let _password = parts.next();
        Some(GroupLine {
            name,
            gid: parts.next().and_then(number).unwrap_or(0),
            members: parts.next().unwrap_or_default(),
        })
    }
}

fn parts(line: &str) -> Option<std::str::Split<'_, char>> {
    let line = line.trim();
    (!line.is_empty() && !line.starts_with('#')).then(|| line.split(':'))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment:x:5:5::/:\n\
        app:x:1000:1000:An app:/home/app:/bin/sh\nodd\n  web:x:33:33::/var/www:\nfar:x:4294967296:1::/:\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\napp:x:1000:\nlogs:x:44:web,app\n";

    #[track_caller]
    fn check(spec: &str, expected: Result<(u32, u32, &[u32], &str), &str>) {
        let found = resolve(spec, PASSWD, GROUP);
        match (found, expected) {
            (Ok(user), Ok((uid, gid, groups, home))) => {
                assert_eq!((user.uid, user.gid), (uid, gid), "{spec}");
                assert_eq!(user.groups, groups, "{spec}");
                assert_eq!(user.home, home, "{spec}");
            }
            (Err(error), Err(text)) => assert_eq!(error.to_string(), text, "{spec}"),
            (found, expected) => panic!("{spec}: {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        check("", Ok((0, 0, &[10], "/root")));
        check("root", Ok((0, 0, &[10], "/root")));
        check("0", Ok((0, 0, &[10], "/root")));
        check("app", Ok((1000, 1000, &[10, 44], "/home/app")));
        check("1000", Ok((1000, 1000, &[10, 44], "/home/app")));
        check("1000:", Ok((1000, 1000, &[10, 44], "/home/app")));
        check("app:wheel", Ok((1000, 10, &[], "/home/app")));
        check("app:10", Ok((1000, 10, &[], "/home/app")));
        check("app:77", Ok((1000, 77, &[], "/home/app")));
        check(":44", Ok((0, 44, &[], "/root")));
        check("web", Ok((33, 33, &[44], "/var/www")));
        check("65534", Ok((65534, 0, &[], "/")));
        check("65534:65534", Ok((65534, 65534, &[], "/")));
        check("2147483647", Ok((2_147_483_647, 0, &[], "/")));
    }

    #[test]
    fn who_is_not_there_is_named() {
        check(
            "foo",
            Err("unable to find user foo: no matching entries in passwd file"),
        );
        check(
            "app:foo",
            Err("unable to find group foo: no matching entries in group file"),
        );
        check(
            "2147483648",
            Err("uids and gids must be in range 0-2147483647"),
        );
        check("-1", Err("uids and gids must be in range 0-2147483647"));
        check("0:-5", Err("uids and gids must be in range 0-2147483647"));
        check("far", Err("uids and gids must be in range 0-2147483647"));
    }

    #[test]
    fn an_image_without_files_has_numbers_only() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let user = lookup_user(root.path(), "1:2").expect("numbers");
        assert_eq!((user.uid, user.gid, user.home.as_str()), (1, 2, "/"));
        assert!(lookup_user(root.path(), "root").is_err());
        assert_eq!(lookup_user(root.path(), "").expect("root").uid, 0);
    }

    #[test]
    fn links_lead_within_the_image() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let root = place.path().join("root");
        fs::create_dir_all(root.join("etc")).expect("a directory");
        fs::create_dir_all(root.join("usr/etc")).expect("a directory");
        fs::write(place.path().join("passwd"), "evil:x:0:0::/:\n").expect("a file");
        symlink("../../passwd", root.join("etc/passwd")).expect("a link");
        assert!(lookup_user(&root, "evil").is_err());
        fs::write(root.join("usr/etc/passwd"), PASSWD).expect("a file");
        fs::remove_file(root.join("etc/passwd")).expect("a link");
        symlink("/usr/etc/passwd", root.join("etc/passwd")).expect("a link");
        assert_eq!(lookup_user(&root, "app").expect("a user").uid, 1000);
        fs::remove_file(root.join("etc/passwd")).expect("a link");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("etc/passwd"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from(0o600),
            0,
        )
        .expect("a pipe");
        let error = lookup_user(&root, "app").expect_err("a pipe is no file");
        assert!(error.to_string().contains("it is not a file"), "{error}");
    }

    /// Needs root. The kernel does not follow `..` while anything is mounted anywhere.
    #[test]
    fn a_machine_that_mounts_meanwhile_is_no_obstacle() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (root, mounted) = (place.path().join("root"), place.path().join("mounted"));
        fs::create_dir_all(root.join("usr/etc")).expect("a directory");
        fs::create_dir_all(root.join("etc")).expect("a directory");
        fs::create_dir(&mounted).expect("a directory");
        fs::write(root.join("usr/etc/passwd"), PASSWD).expect("a file");
        let link = format!("../usr/etc/{}passwd", "../etc/".repeat(64));
        symlink(link, root.join("etc/passwd")).expect("a link");
        let done = std::sync::atomic::AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    rustix::mount::mount_bind(&root, &mounted).expect("a mount");
                    mounts::detach(&mounted).expect("unmounted");
                }
            });
            let outcome = (0..2000).try_for_each(|_| lookup_user(&root, "app").map(drop));
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            outcome
        });
        outcome.expect("each time");
    }
}

//! Which hierarchies are mounted, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::collections::BTreeSet;

use super::{Cgroups, Hierarchy};

/// ```text
/// 30 23 0:26 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
///            │ └ mount point           optional fields   │ type        └ super options: controllers
///            └ root of the mount: only whole hierarchies count
/// ```
pub(super) fn parse_mounts(mountinfo: &str) -> Cgroups {
    let mut found = Cgroups {
        version_1: Vec::new(),
        version_2: None,
    };
    for line in mountinfo.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else {
            continue;
        };
        let mut fields = mount.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else {
            continue;
        };
        let mut fields = file_system.split(' ');
        let (kind, options) = (fields.next(), fields.nth(1).unwrap_or_default());
        if root != "/" {
            continue;
        }
        let mount = mounts::unescape(point.as_bytes());
        match kind {
            Some("cgroup2") if found.version_2.is_none() => found.version_2 = Some(mount),
            Some("cgroup") => {
                let controllers = options
                    .split(',')
                    .filter(|option| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children"))
                    .filter(|option| !option.starts_with("release_agent="))
                    .map(str::to_owned)
                    .collect::<BTreeSet<_>>();
                let known = |hierarchy: &Hierarchy| hierarchy.controllers == controllers;
                if !controllers.is_empty() && !found.version_1.iter().any(known) {
                    found.version_1.push(Hierarchy { mount, controllers });
                }
            }
            _ => {}
        }
    }
    // systemd's own hierarchy alone, beside version 2, is no controller.
    if found.version_2.is_some()
        && found.version_1.iter().all(|hierarchy| {
            hierarchy
                .controllers
                .iter()
                .all(|name| name.starts_with("name="))
        })
    {
        found.version_1.clear();
    }
    found
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn check(mountinfo: &str, version_2: Option<&str>, version_1: &[(&str, &str)]) {
        let found = parse_mounts(mountinfo);
        assert_eq!(found.version_2, version_2.map(PathBuf::from));
        let hierarchies: Vec<_> = found
            .version_1
            .iter()
            .map(|hierarchy| {
                let controllers: Vec<_> = hierarchy.controllers.iter().cloned().collect();
                (hierarchy.mount.display().to_string(), controllers.join(","))
            })
            .collect();
        let expected: Vec<_> = version_1
            .iter()
            .map(|(mount, names)| ((*mount).to_owned(), (*names).to_owned()))
            .collect();
        assert_eq!(hierarchies, expected);
    }

    #[test]
    fn each_layout_is_recognised() {
        check(
            "22 1 0:20 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate",
            Some("/sys/fs/cgroup"),
            &[],
        );
        check(
            "22 1 0:20 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             23 1 0:21 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             24 1 0:22 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
            Some("/sys/fs/cgroup/unified"),
            &[
                ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
                ("/sys/fs/cgroup/systemd", "name=systemd"),
            ],
        );
        check(
            "23 1 0:21 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
             24 1 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            Some("/sys/fs/cgroup"),
            &[],
        );
    }

    #[test]
    fn parts_of_a_hierarchy_and_second_mounts_do_not_count() {
        check(
            "22 1 0:20 /docker/x /mnt/a rw - cgroup cgroup rw,memory\n\
             23 1 0:20 / /mnt/b\\040c rw - cgroup cgroup rw,memory\n\
             24 1 0:20 / /mnt/d rw - cgroup cgroup rw,memory\n\
             nonsense",
            None,
            &[("/mnt/b c", "memory")],
        );
    }
}

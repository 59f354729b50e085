//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a sandbox: written once beside its
//! record, and bound into each of its containers.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::api::{NetworkMode, SandboxSpec};
use crate::error::machine;

/// The files, and where they appear.
const FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Writes the files into `directory/etc`.
pub(crate) fn write(
    directory: &Path,
    spec: &SandboxSpec,
    address: Option<Ipv4Addr>,
) -> Result<(), crate::Error> {
    let etc = directory.join("etc");
    fs::create_dir_all(&etc).map_err(|error| machine("make", etc.display().to_string(), error))?;
    let machines = match spec.network {
        NetworkMode::Host => read("/etc/hosts")?,
        _ => String::new(),
    };
    let resolver = match &spec.resolv_conf {
        Some(text) => text.clone(),
        None => read("/etc/resolv.conf")?,
    };
    let hostname = match spec.network {
        NetworkMode::Host => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        _ => spec.hostname.clone(),
    };
    let texts = [
        hosts(spec, address, &machines),
        format!("{hostname}\n"),
        resolver,
    ];
    for (name, text) in FILES.into_iter().zip(texts) {
        let path = etc.join(name);
        fs::write(&path, text)
            .map_err(|error| machine("write", path.display().to_string(), error))?;
    }
    Ok(())
}

/// A missing file of the machine is an empty one.
fn read(path: &str) -> Result<String, crate::Error> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result.map_err(|error| machine("read", path, error)),
    }
}

/// The mounts for a container that has none of its own at these places.
pub(crate) fn mounts(
    directory: &Path,
    own: &[crate::Mount],
    read_only: bool,
) -> Vec<runtime::Mount> {
    FILES
        .into_iter()
        .map(|name| runtime::Mount {
            source: directory.join("etc").join(name),
            target: PathBuf::from("/etc").join(name),
            read_only,
            propagation: runtime::Propagation::Private,
        })
        .filter(|mount| own.iter().all(|other| other.target != mount.target))
        .collect()
}

/// The text of `/etc/hosts`, to the letter as kubelet writes it: tests and tools look for its
/// first line.
fn hosts(spec: &SandboxSpec, address: Option<Ipv4Addr>, machines: &str) -> String {
    let mut text = if spec.network == NetworkMode::Host {
        format!("# Kubernetes-managed hosts file (host network).\n{machines}")
    } else {
        String::from(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        )
    };
    if let Some(address) = address
        && !spec.own_names.is_empty()
    {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{address}\t{}", spec.own_names.join("\t"));
    }
    if !spec.hosts.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for (address, names) in &spec.hosts {
            let _ = writeln!(text, "{address}\t{}", names.join("\t"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_files_of_own_and_machine_s_networks() {
        let mut spec = SandboxSpec {
            own_names: vec!["web.shop.local".to_owned(), "web".to_owned()],
            hosts: vec![(
                "10.1.2.3".parse().expect("an address"),
                vec!["a".into(), "b".into()],
            )],
            ..SandboxSpec::default()
        };
        let text = hosts(&spec, Some(Ipv4Addr::new(10, 244, 0, 7)), "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with(
            "10.244.0.7\tweb.shop.local\tweb\n\n# Entries added by HostAliases.\n10.1.2.3\ta\tb\n"
        ));
        spec.network = NetworkMode::Host;
        spec.hosts.clear();
        assert_eq!(
            hosts(&spec, None, "127.0.0.1 me\n"),
            "# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n"
        );
    }

    #[test]
    fn a_container_s_own_file_goes_before() {
        let own = [crate::Mount {
            source: "/x".into(),
            target: "/etc/hosts".into(),
            read_only: false,
            propagation: crate::Propagation::Private,
        }];
        let targets: Vec<_> = mounts(Path::new("/s"), &own, false)
            .into_iter()
            .map(|mount| mount.target)
            .collect();
        assert_eq!(
            targets,
            [Path::new("/etc/hostname"), Path::new("/etc/resolv.conf")]
        );
    }
}

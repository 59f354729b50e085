//! What is meant: flags over the settings file over what the cluster was made with over the defaults,
//! checked, with nothing touched yet.
//!
//! A cluster remembers its settings in its data directory, so that `wharf up --data-dir DIR` goes on
//! with them and `wharf reset` finds what is to be taken away. What its objects were made with (the
//! ranges, the name of the node) cannot change any more; the rest can.

use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::args::SettingsArguments;
use crate::exit::Misuse;
use crate::instance::Instance;

const SETTINGS_FILE: &str = "/etc/wharf/config.toml";
const DATA_DIR: &str = "/var/lib/wharf";
/// Longer is no settings file.
const BYTES_MAX: u64 = 1 << 20;

/// A range of IPv4 addresses in CIDR notation, its host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// The first address.
    pub network: Ipv4Addr,
    /// Number of leading bits that all addresses share.
    pub prefix: u8,
}

/// Where the API listens: an address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub SocketAddr);

/// The settings file: every key is the name of a flag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    data_dir: Option<PathBuf>,
    api_listen: Option<ListenAddress>,
    kubeconfig: Option<PathBuf>,
    pod_cidr: Option<AddressRange>,
    service_cidr: Option<AddressRange>,
    node_name: Option<String>,
}

/// What an instance is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything is kept, and what it is called on this machine.
    pub instance: Instance,
    /// Where the API listens for people.
    pub api_listen: SocketAddr,
    /// The kubeconfig file to write into.
    pub kubeconfig: PathBuf,
    /// Addresses of pods.
    pub pod_cidr: AddressRange,
    /// Addresses of Services.
    pub service_cidr: AddressRange,
    /// Name of this machine's node.
    pub node_name: String,
    /// The server tells its progress on standard output, and detaches from the terminal.
    pub progress: bool,
    /// The flags that lead to the same configuration again.
    pub flags: Vec<String>,
    /// What the cluster in the data directory was last started with, if there is one.
    made: Settings,
}

impl Config {
    /// Resolves what was typed. Errors are [`Misuse`].
    pub fn resolve(typed: &SettingsArguments) -> anyhow::Result<Config> {
        let settings = Settings::chosen(typed.config.as_deref())?;
        let data_dir = typed.data_dir.clone().or(settings.data_dir);
        let instance = Instance::at(absolute(data_dir.unwrap_or_else(|| DATA_DIR.into()))?);
        let made = Settings::made(&instance)?;
        let kubeconfig = match typed.kubeconfig.clone().or(settings.kubeconfig) {
            Some(path) => absolute(path)?,
            None => listed_kubeconfig()
                .or_else(|| made.kubeconfig.clone())
                .unwrap_or_else(home_kubeconfig),
        };
        let range = |ranges: [Option<AddressRange>; 3], network| {
            let default = AddressRange {
                network,
                prefix: 16,
            };
            ranges.into_iter().flatten().next().unwrap_or(default)
        };
        let mut config = Config {
            instance,
            api_listen: typed
                .api_listen
                .or(settings.api_listen)
                .or(made.api_listen)
                .map_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 6443), |to| to.0),
            kubeconfig,
            pod_cidr: range(
                [typed.pod_cidr, settings.pod_cidr, made.pod_cidr],
                Ipv4Addr::new(10, 244, 0, 0),
            ),
            service_cidr: range(
                [typed.service_cidr, settings.service_cidr, made.service_cidr],
                Ipv4Addr::new(10, 96, 0, 0),
            ),
            node_name: typed
                .node_name
                .clone()
                .or(settings.node_name)
                .or_else(|| made.node_name.clone())
                .unwrap_or_else(default_node_name),
            progress: false,
            flags: Vec::new(),
            made,
        };
        config.check()?;
        config.flags = config.to_flags();
        Ok(config)
    }

    /// Refuses settings that would contradict what the cluster's objects were made with.
    pub fn refuse_changes(&self) -> Result<(), Misuse> {
        let made = &self.made;
        let changes = [
            ("--pod-cidr", made.pod_cidr.map(text), text(self.pod_cidr)),
            (
                "--service-cidr",
                made.service_cidr.map(text),
                text(self.service_cidr),
            ),
            (
                "--node-name",
                made.node_name.clone(),
                self.node_name.clone(),
            ),
        ];
        for (flag, before, now) in changes {
            if let Some(before) = before.filter(|before| *before != now) {
                return Err(Misuse(format!(
                    "the cluster in {} was made with {flag} {before}, and {now} is asked for; leave the setting out to go on with it, or delete the cluster with `wharf reset --data-dir {0}` first",
                    self.instance.data_dir.display()
                )));
            }
        }
        Ok(())
    }

    /// The same with what the cluster was made with in the place of what is asked for: the way to
    /// what it left on this machine.
    pub fn as_made(mut self) -> Config {
        self.pod_cidr = self.made.pod_cidr.unwrap_or(self.pod_cidr);
        self.service_cidr = self.made.service_cidr.unwrap_or(self.service_cidr);
        if let Some(name) = &self.made.node_name {
            self.node_name.clone_from(name);
        }
        self
    }

    /// Writes these settings into the data directory, to be gone on with.
    pub fn remember(&self) -> anyhow::Result<()> {
        let settings = Settings {
            data_dir: None,
            api_listen: Some(ListenAddress(self.api_listen)),
            kubeconfig: Some(self.kubeconfig.clone()),
            pod_cidr: Some(self.pod_cidr),
            service_cidr: Some(self.service_cidr),
            node_name: Some(self.node_name.clone()),
        };
        if settings == self.made {
            return Ok(());
        }
        let path = self.instance.settings_file();
        let text = toml::to_string(&settings).context("write settings")?;
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Whether kubectl finds the context without being told where.
    pub(crate) fn kubeconfig_is_where_kubectl_looks(&self) -> bool {
        self.kubeconfig == listed_kubeconfig().unwrap_or_else(home_kubeconfig)
    }

    /// The name of the kubeconfig context: `wharf`, or the instance's name.
    pub fn context(&self) -> &str {
        &self.instance.name
    }

    /// The URL by which clients on this machine reach the API.
    pub fn server_url(&self) -> String {
        let address = match self.api_listen.ip() {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => {
                IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)
            }
            address => address,
        };
        format!(
            "https://{}",
            SocketAddr::new(address, self.api_listen.port())
        )
    }

    fn check(&self) -> Result<(), Misuse> {
        let (pods, services) = (self.pod_cidr, self.service_cidr);
        if pods.overlaps(&services) {
            return Err(Misuse(format!(
                "--pod-cidr {pods} and --service-cidr {services} overlap; choose separate ranges"
            )));
        }
        for (flag, range, prefix_min, prefix_max) in [
            ("--pod-cidr", pods, 8, 24),
            ("--service-cidr", services, 12, 28),
        ] {
            if range.prefix < prefix_min || range.prefix > prefix_max {
                return Err(Misuse(format!(
                    "{flag} {range}: the prefix must be between /{prefix_min} and /{prefix_max}"
                )));
            }
        }
        if self.api_listen.port() == 0 {
            return Err(Misuse(
                "--api-listen needs a fixed port: clients are told it through the kubeconfig"
                    .into(),
            ));
        }
        let name = &self.node_name;
        let well_formed = !name.is_empty()
            && name.len() <= 63
            && name.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|byte| {
                        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
                    })
            });
        if !well_formed {
            return Err(Misuse(format!(
                "--node-name {name:?} is no DNS name: lower-case letters, digits, '-' and '.', at most 63"
            )));
        }
        Ok(())
    }

    fn to_flags(&self) -> Vec<String> {
        [
            ("--data-dir", self.instance.data_dir.display().to_string()),
            ("--api-listen", self.api_listen.to_string()),
            ("--kubeconfig", self.kubeconfig.display().to_string()),
            ("--pod-cidr", self.pod_cidr.to_string()),
            ("--service-cidr", self.service_cidr.to_string()),
            ("--node-name", self.node_name.clone()),
        ]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_string(), value])
        .collect()
    }
}

impl Settings {
    /// The file that was named, or the machine's, if there is one.
    fn chosen(path: Option<&Path>) -> Result<Settings, Misuse> {
        let (path, must_exist) = match path {
            Some(path) => (path, true),
            None => (Path::new(SETTINGS_FILE), false),
        };
        let missing: &[io::ErrorKind] = if must_exist {
            &[]
        } else {
            &[io::ErrorKind::NotFound]
        };
        let mut settings = Settings::read(path, missing)?;
        // Paths in a file mean the same wherever the command is typed.
        let directory = absolute(path.to_path_buf())?;
        let directory = directory.parent().unwrap_or(Path::new("/"));
        for path in [&mut settings.data_dir, &mut settings.kubeconfig] {
            *path = path.take().map(|path| directory.join(path));
        }
        Ok(settings)
    }

    /// What the cluster of an instance was last started with.
    fn made(instance: &Instance) -> Result<Settings, Misuse> {
        // Only root sees into the data directory, and only root needs to.
        let missing = [
            io::ErrorKind::NotFound,
            io::ErrorKind::NotADirectory,
            io::ErrorKind::PermissionDenied,
        ];
        Settings::read(&instance.settings_file(), &missing)
    }

    /// Nothing is set if the file cannot be opened for one of the reasons in `missing`.
    fn read(path: &Path, missing: &[io::ErrorKind]) -> Result<Settings, Misuse> {
        let shown = path.display();
        let unreadable = |error: io::Error| Misuse(format!("read settings {shown}: {error}"));
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if missing.contains(&error.kind()) => return Ok(Settings::default()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut text = String::new();
        file.take(BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        if text.len() as u64 > BYTES_MAX {
            return Err(Misuse(format!(
                "settings {shown}: too large for a settings file"
            )));
        }
        toml::from_str(&text).map_err(|error| {
            Misuse(format!(
                "settings {shown}: {}",
                error.to_string().trim_end()
            ))
        })
    }
}

impl AddressRange {
    /// Whether an address is in both.
    pub fn overlaps(&self, other: &AddressRange) -> bool {
        let mask = mask(self.prefix.min(other.prefix));
        u32::from(self.network) & mask == u32::from(other.network) & mask
    }

    /// The address at a position; the network itself is position 0.
    pub fn address(&self, position: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + position)
    }
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("{text:?} is no IPv4 range; write it like 10.244.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(wanted)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wanted())?;
        let prefix: u8 = prefix.parse().map_err(|_| wanted())?;
        if prefix > 32 {
            return Err(wanted());
        }
        let network = Ipv4Addr::from(u32::from(address) & mask(prefix));
        if network != address {
            return Err(format!(
                "{text:?} names an address inside the range; the range is {network}/{prefix}"
            ));
        }
        Ok(AddressRange { network, prefix })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(ListenAddress).map_err(|_| {
            format!("{text:?} is no IP address with a port; write it like 127.0.0.1:6443")
        })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// In files they stand as they are typed.
macro_rules! as_typed {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

as_typed!(AddressRange, ListenAddress);

fn text(range: AddressRange) -> String {
    range.to_string()
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn absolute(path: PathBuf) -> Result<PathBuf, Misuse> {
    std::path::absolute(&path).map_err(|error| Misuse(format!("{}: {error}", path.display())))
}

/// The first file of `$KUBECONFIG`, into which kubectl would write.
fn listed_kubeconfig() -> Option<PathBuf> {
    let list = std::env::var_os("KUBECONFIG")?;
    std::env::split_paths(&list).find(|path| !path.as_os_str().is_empty())
}

/// The file that kubectl takes when it is told nothing.
fn home_kubeconfig() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    home.join(".kube/config")
}

/// The host name in the form that Kubernetes accepts, as kubelet does it.
fn default_node_name() -> String {
    let uname = rustix::system::uname();
    let name: String = uname
        .nodename()
        .to_string_lossy()
        .to_lowercase()
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() || letter == '.' {
                letter
            } else {
                '-'
            }
        })
        .collect();
    let name = name.trim_matches(|letter| letter == '-' || letter == '.');
    if name.is_empty() || name == "(none)" {
        "localhost".into()
    } else {
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(typed: SettingsArguments) -> Result<Config, String> {
        Config::resolve(&typed).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let directory = std::env::temp_dir().join(format!("wharf-config-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("made");
        let file = directory.join("config.toml");
        std::fs::write(
            &file,
            "pod-cidr = \"10.50.0.0/16\"\nservice-cidr = \"10.60.0.0/16\"\n",
        )
        .expect("written");
        let config = resolve(SettingsArguments {
            config: Some(file.clone()),
            service_cidr: Some("10.70.0.0/16".parse().expect("a range")),
            node_name: Some("one".into()),
            ..SettingsArguments::default()
        })
        .expect("resolved");
        assert_eq!(config.pod_cidr.to_string(), "10.50.0.0/16");
        assert_eq!(config.service_cidr.to_string(), "10.70.0.0/16");
        assert_eq!(config.api_listen.to_string(), "127.0.0.1:6443");

        std::fs::write(&file, "pod-cdir = \"10.50.0.0/16\"\n").expect("written");
        let typed = SettingsArguments {
            config: Some(file),
            ..SettingsArguments::default()
        };
        let message = resolve(typed).expect_err("refused");
        assert!(
            message.contains("pod-cdir") && message.contains("config.toml"),
            "{message}"
        );
        std::fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason() {
        let check = |typed: SettingsArguments, reason: &str| {
            let message = resolve(typed).expect_err("refused");
            assert!(message.contains(reason), "{message}");
        };
        let base = SettingsArguments {
            config: Some("/dev/null".into()),
            ..SettingsArguments::default()
        };
        check(
            SettingsArguments {
                service_cidr: Some("10.244.8.0/24".parse().expect("a range")),
                ..base.clone()
            },
            "overlap",
        );
        check(
            SettingsArguments {
                node_name: Some("Big_Name".into()),
                ..base.clone()
            },
            "--node-name",
        );
        check(
            SettingsArguments {
                config: Some("/nowhere/config.toml".into()),
                ..SettingsArguments::default()
            },
            "/nowhere/config.toml",
        );
        assert!(
            "10.0.0.1/8"
                .parse::<AddressRange>()
                .expect_err("host bits")
                .contains("10.0.0.0/8")
        );
        assert!("10.0.0.0".parse::<AddressRange>().is_err());
        assert!("10.0.0.0/33".parse::<AddressRange>().is_err());
    }
    #[test]
    fn a_cluster_goes_on_with_what_it_was_made_with() {
        let directory = std::env::temp_dir().join(format!("wharf-made-{}", std::process::id()));
        let typed = SettingsArguments {
            config: Some("/dev/null".into()),
            data_dir: Some(directory.clone()),
            ..SettingsArguments::default()
        };
        let first = resolve(SettingsArguments {
            pod_cidr: Some("10.50.0.0/16".parse().expect("a range")),
            api_listen: Some("127.0.0.1:7443".parse().expect("an address")),
            node_name: Some("one".into()),
            ..typed.clone()
        })
        .expect("resolved");
        first.instance.make_data_dir().expect("made");
        first.remember().expect("written");
        let again = resolve(typed.clone()).expect("resolved");
        assert_eq!(again.flags, first.flags);
        again.refuse_changes().expect("nothing changed");

        let other = resolve(SettingsArguments {
            pod_cidr: Some("10.60.0.0/16".parse().expect("a range")),
            api_listen: Some("127.0.0.1:7444".parse().expect("an address")),
            ..typed.clone()
        })
        .expect("resolved");
        let message = other.refuse_changes().expect_err("refused").to_string();
        for word in ["--pod-cidr", "10.50.0.0/16", "10.60.0.0/16", "wharf reset"] {
            assert!(message.contains(word), "{message}");
        }
        let other = other.as_made();
        assert_eq!(other.pod_cidr, first.pod_cidr);
        assert_eq!(other.api_listen.port(), 7444);

        std::fs::write(first.instance.settings_file(), "pod-cidr = 7").expect("written");
        let message = resolve(typed).expect_err("refused");
        assert!(message.contains("settings.toml"), "{message}");
        std::fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    fn settings_files_are_small_and_their_paths_stay_where_they_are() {
        let settings = |path: &str| {
            resolve(SettingsArguments {
                config: Some(path.into()),
                node_name: Some("one".into()),
                ..SettingsArguments::default()
            })
        };
        let message = settings("/dev/zero").expect_err("endless");
        assert!(message.contains("/dev/zero: too large"), "{message}");
        let directory = std::env::temp_dir().join(format!("wharf-paths-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("made");
        let file = directory.join("config.toml");
        std::fs::write(&file, "data-dir = \"data\"\nkubeconfig = \"/kc\"\n").expect("written");
        let config = settings(&file.to_string_lossy()).expect("resolved");
        assert_eq!(config.instance.data_dir, directory.join("data"));
        assert_eq!(config.kubeconfig, Path::new("/kc"));
        std::fs::write(&file, "api-listen = \"7443\"\n").expect("written");
        let message = settings(&file.to_string_lossy()).expect_err("no address");
        assert!(message.contains("127.0.0.1:6443"), "{message}");
        std::fs::remove_dir_all(&directory).expect("removed");
    }
}

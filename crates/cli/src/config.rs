//! What is meant: flags over the settings file over the defaults, checked, with nothing touched yet.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;

use crate::args::SettingsArguments;
use crate::exit::Misuse;
use crate::instance::Instance;

const SETTINGS_FILE: &str = "/etc/wharf/config.toml";
const DATA_DIR: &str = "/var/lib/wharf";

/// A range of IPv4 addresses in CIDR notation, its host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    /// The first address.
    pub network: Ipv4Addr,
    /// Number of leading bits that all addresses share.
    pub prefix: u8,
}

/// The settings file: every key is the name of a flag.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    data_dir: Option<PathBuf>,
    api_listen: Option<SocketAddr>,
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
}

impl Config {
    /// Resolves what was typed. Errors are [`Misuse`].
    pub fn resolve(typed: &SettingsArguments) -> anyhow::Result<Config> {
        let settings = Settings::read(typed.config.as_deref())?;
        let data_dir = absolute(
            typed
                .data_dir
                .clone()
                .or(settings.data_dir)
                .unwrap_or_else(|| DATA_DIR.into()),
        )?;
        let kubeconfig = match typed.kubeconfig.clone().or(settings.kubeconfig) {
            Some(path) => absolute(path)?,
            None => default_kubeconfig(),
        };
        let range = |typed: Option<AddressRange>, set: Option<AddressRange>, network| {
            typed.or(set).unwrap_or(AddressRange {
                network,
                prefix: 16,
            })
        };
        let mut config = Config {
            instance: Instance::at(data_dir),
            api_listen: typed
                .api_listen
                .or(settings.api_listen)
                .unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 6443)),
            kubeconfig,
            pod_cidr: range(
                typed.pod_cidr,
                settings.pod_cidr,
                Ipv4Addr::new(10, 244, 0, 0),
            ),
            service_cidr: range(
                typed.service_cidr,
                settings.service_cidr,
                Ipv4Addr::new(10, 96, 0, 0),
            ),
            node_name: match typed.node_name.clone().or(settings.node_name) {
                Some(name) => name,
                None => default_node_name(),
            },
            progress: false,
            flags: Vec::new(),
        };
        config.check()?;
        config.flags = config.to_flags();
        Ok(config)
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
    fn read(path: Option<&Path>) -> Result<Settings, Misuse> {
        let (path, must_exist) = match path {
            Some(path) => (path, true),
            None => (Path::new(SETTINGS_FILE), false),
        };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => {
                return Ok(Settings::default());
            }
            Err(error) => return Err(Misuse(format!("read settings {}: {error}", path.display()))),
        };
        toml::from_str(&text).map_err(|error| {
            Misuse(format!(
                "settings {}: {}",
                path.display(),
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

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn absolute(path: PathBuf) -> Result<PathBuf, Misuse> {
    std::path::absolute(&path).map_err(|error| Misuse(format!("{}: {error}", path.display())))
}

/// What kubectl would write into: the first file of `$KUBECONFIG`, or `~/.kube/config`.
fn default_kubeconfig() -> PathBuf {
    let listed = std::env::var_os("KUBECONFIG")
        .and_then(|list| std::env::split_paths(&list).find(|path| !path.as_os_str().is_empty()));
    listed.unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        home.join(".kube/config")
    })
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
}

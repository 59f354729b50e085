//! What this machine says about itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Kept free of pods' requests, as upstream's eviction threshold: bytes of memory.
const MEMORY_KEPT: u64 = 100 << 20;

/// Facts that do not change while the program runs.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) cpus: usize,
    /// Bytes.
    pub(crate) memory: u64,
    /// Bytes of the file system that holds the data directory.
    pub(crate) disk: u64,
    pub(crate) info: NodeSystemInfo,
}

impl Machine {
    /// Looks.
    pub(crate) fn look(data_dir: &Path, kubelet_version: &str, runtime_version: &str) -> Machine {
        let line = |path: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.trim().to_owned()
        };
        let machine_id = line("/etc/machine-id");
        let product_id = line("/sys/class/dmi/id/product_uuid");
        Machine {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            disk: disk(data_dir),
            info: NodeSystemInfo {
                architecture: architecture().to_owned(),
                boot_id: line("/proc/sys/kernel/random/boot_id"),
                container_runtime_version: runtime_version.to_owned(),
                kernel_version: line("/proc/sys/kernel/osrelease"),
                kube_proxy_version: String::new(),
                kubelet_version: kubelet_version.to_owned(),
                operating_system: "linux".to_owned(),
                os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
                system_uuid: match product_id.is_empty() {
                    true => machine_id.clone(),
                    false => product_id,
                },
                machine_id,
                ..NodeSystemInfo::default()
            },
        }
    }

    /// All of it.
    pub(crate) fn capacity(&self, max_pods: u32) -> BTreeMap<String, Quantity> {
        let mut list = self.list(max_pods, self.memory);
        let disk = format!("{}Ki", self.disk / 1024);
        list.insert("ephemeral-storage".to_owned(), Quantity(disk));
        list
    }

    /// What pods may request.
    pub(crate) fn allocatable(&self, max_pods: u32) -> BTreeMap<String, Quantity> {
        let mut list = self.list(max_pods, self.memory.saturating_sub(MEMORY_KEPT));
        // A tenth is kept, as upstream's eviction threshold, and so it is a plain number of bytes.
        let disk = (self.disk - self.disk / 10).to_string();
        list.insert("ephemeral-storage".to_owned(), Quantity(disk));
        list
    }

    fn list(&self, max_pods: u32, memory: u64) -> BTreeMap<String, Quantity> {
        BTreeMap::from([
            ("cpu".to_owned(), Quantity(self.cpus.to_string())),
            (
                "memory".to_owned(),
                Quantity(format!("{}Ki", memory / 1024)),
            ),
            ("pods".to_owned(), Quantity(max_pods.to_string())),
            ("hugepages-1Gi".to_owned(), Quantity("0".to_owned())),
            ("hugepages-2Mi".to_owned(), Quantity("0".to_owned())),
        ])
    }
}

/// Go's name of the processor architecture.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn memory(meminfo: &str) -> u64 {
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kibibytes = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

fn os_image(release: &str) -> String {
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = name.map(|name| name.trim().trim_matches(['"', '\'']).to_owned());
    name.unwrap_or_else(|| "Linux".to_owned())
}

fn disk(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |found| found.f_blocks.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_where_the_system_writes_them() {
        assert_eq!(memory("MemFree: 1 kB\n"), 0);
        assert_eq!(memory("MemTotal:       24684096 kB\n"), 24_684_096 * 1024);
        assert_eq!(
            os_image("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_image(""), "Linux");
    }

    #[test]
    fn what_is_kept_from_pods() {
        let machine = Machine {
            cpus: 2,
            memory: 24_684_096 * 1024,
            disk: 1000,
            info: NodeSystemInfo::default(),
        };
        // The figures that genuine Kubernetes gave on such a machine.
        assert_eq!(machine.capacity(110)["memory"].0, "24684096Ki");
        assert_eq!(machine.allocatable(110)["memory"].0, "24581696Ki");
        assert_eq!(machine.allocatable(110)["ephemeral-storage"].0, "900");
    }
}

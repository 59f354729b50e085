//! All kinds that are known, and finding one among them.

use std::sync::OnceLock;

use crate::Kind;

/// The known kinds. There are few enough that looking through them is the fastest way to find one.
#[derive(Debug)]
pub struct Registry {
    kinds: Vec<Kind>,
}

/// The kinds that are built in; parsed at the first call.
pub fn builtin() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let kinds = Kind::all_of(include_str!("../data/kinds.json"));
        Registry {
            kinds: kinds.expect("the data file was written by our own generator"),
        }
    })
}

impl Registry {
    fn of_version(&self, group: &str, version: &str) -> impl Iterator<Item = &Kind> {
        self.kinds
            .iter()
            .filter(move |kind| kind.group() == group && kind.version() == version)
    }

    /// The kind whose objects lie under this resource name.
    pub fn by_resource(&self, group: &str, version: &str, plural: &str) -> Option<&Kind> {
        self.of_version(group, version)
            .find(|kind| !plural.is_empty() && kind.plural() == plural)
    }

    /// The kind of this name, also those that only are bodies of subresources.
    pub fn by_kind(&self, group: &str, version: &str, name: &str) -> Option<&Kind> {
        self.of_version(group, version)
            .find(|kind| kind.kind() == name)
    }

    /// All kinds, in the order in which discovery lists their groups.
    pub fn all(&self) -> impl Iterator<Item = &Kind> {
        self.kinds.iter()
    }
}

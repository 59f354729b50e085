//! Removing images by Docker's rules: a name goes first, the image with its last name.

use oci::{Digest, Reference};

use crate::store::{Images, blocking};
use crate::table::{Table, TableError};

/// A container that uses an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The container's id.
    pub container: String,
    /// A stopped one can be overruled, a running one cannot.
    pub running: bool,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<Reference>,
    /// The image, if that was its last name.
    pub deleted: Option<Digest>,
}

/// Why an image stays; the texts are Docker's.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It is not here, or the beginning of an id is that of several.
    #[error("No such image: {0}")]
    NotFound(String),
    /// It has names in several repositories.
    #[error(
        "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
        .0.short()
    )]
    Names(Digest),
    /// A container runs on it.
    #[error(
        "conflict: unable to delete {} (cannot be forced) - image is being used by running container {container}",
        image.short()
    )]
    Running {
        /// The image.
        image: Digest,
        /// The container, shortened.
        container: String,
    },
    /// A stopped container is made of it.
    #[error(
        "conflict: unable to delete {} (must be forced) - image is being used by stopped container {container}",
        image.short()
    )]
    Stopped {
        /// The image.
        image: Digest,
        /// The container, shortened.
        container: String,
    },
    /// A container uses the image, and this is its last name.
    #[error(
        "conflict: unable to remove repository reference \"{name}\" (must force) - container {container} is using its referenced image {}",
        image.short()
    )]
    LastName {
        /// As it was asked for.
        name: String,
        /// The image.
        image: Digest,
        /// The container, shortened.
        container: String,
    },
    /// The table could not be changed.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl Images {
    /// Takes a name away, and the image with it if that was the last; by id, the image with all its
    /// names. `in_use` says which container uses an image; a running one before a stopped one.
    ///
    /// Roots that are made of the image keep its layers until they are removed.
    pub async fn remove(
        &self,
        text: &str,
        force: bool,
        in_use: impl Fn(&Digest) -> Option<Use>,
    ) -> Result<Removed, RemoveError> {
        let id = self
            .find(text)
            .map(|image| image.id.clone())
            .ok_or_else(|| RemoveError::NotFound(text.to_owned()))?;
        let user = in_use(&id);
        let (inner, text) = (self.0.clone(), text.to_owned());
        blocking(move || {
            let removed = inner.change(|table| remove(table, &id, &text, force, user.as_ref()))?;
            if removed.deleted.is_some() {
                inner.collect_garbage();
            }
            Ok(removed)
        })
        .await
    }
}

fn remove(
    table: &mut Table,
    id: &Digest,
    text: &str,
    force: bool,
    user: Option<&Use>,
) -> Result<Removed, RemoveError> {
    if !table.images.contains_key(id) {
        return Err(RemoveError::NotFound(text.to_owned()));
    }
    let names = table.names_of(id);
    let asked = Reference::parse(text)
        .ok()
        .filter(|name| names.contains(name));
    let by_name = asked.is_some();
    let mut removed = Removed::default();
    if let Some(name) = asked
        && names.len() > 1
    {
        table.names.remove(&name);
        removed.untagged.push(name);
        return Ok(removed);
    }
    let several = names
        .windows(2)
        .any(|pair| !pair[0].same_repository(&pair[1]));
    if !by_name && several && !force {
        return Err(RemoveError::Names(id.clone()));
    }
    if let Some(user) = user {
        refuse_in_use(id, text, by_name, force, user)?;
    }
    for name in names {
        table.names.remove(&name);
        removed.untagged.push(name);
    }
    table.images.remove(id);
    removed.deleted = Some(id.clone());
    Ok(removed)
}

fn refuse_in_use(
    id: &Digest,
    text: &str,
    by_name: bool,
    force: bool,
    user: &Use,
) -> Result<(), RemoveError> {
    let (image, container) = (id.clone(), shortened(&user.container));
    if user.running && (force || !by_name) {
        return Err(RemoveError::Running { image, container });
    }
    if force {
        return Ok(());
    }
    Err(if by_name {
        RemoveError::LastName {
            name: text.to_owned(),
            image,
            container,
        }
    } else {
        RemoveError::Stopped { image, container }
    })
}

fn shortened(container: &str) -> String {
    container.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Named, Row};

    fn table(names: &[&str]) -> (Table, Digest) {
        let mut table = Table::default();
        let image = Digest::of(b"image");
        table
            .images
            .insert(image.clone(), Row { layers: Vec::new() });
        for name in names {
            let name = Reference::parse(name).expect("a name");
            let named = Named {
                image: image.clone(),
                manifest: None,
            };
            table.names.insert(name, named);
        }
        (table, image)
    }

    #[track_caller]
    fn check(
        names: &[&str],
        text: &str,
        force: bool,
        user: Option<bool>,
        expected: Result<(&[&str], bool), &str>,
    ) {
        let (mut table, image) = table(names);
        let user = user.map(|running| Use {
            container: "0123456789abcdef".to_owned(),
            running,
        });
        let text = text.replace("ID", image.hex());
        match (
            remove(&mut table, &image, &text, force, user.as_ref()),
            expected,
        ) {
            (Ok(removed), Ok((untagged, deleted))) => {
                let gone: Vec<String> = removed.untagged.iter().map(Reference::familiar).collect();
                assert_eq!(gone, untagged);
                assert_eq!(removed.deleted.is_some(), deleted);
                assert_eq!(table.images.is_empty(), deleted);
                assert_eq!(table.names.len(), names.len() - untagged.len());
            }
            (Err(error), Err(text)) => {
                assert!(error.to_string().contains(text), "{error}");
                assert_eq!(table.names.len(), names.len());
            }
            (removed, expected) => panic!("{removed:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_name_goes_first_and_the_image_with_its_last() {
        check(&["a:1"], "a:1", false, None, Ok((&["a:1"], true)));
        check(&["a:1", "a:2"], "a:1", false, None, Ok((&["a:1"], false)));
        check(
            &["a:1", "a:2"],
            "a:1",
            false,
            Some(true),
            Ok((&["a:1"], false)),
        );
        check(
            &["a:1", "a:2"],
            "ID",
            false,
            None,
            Ok((&["a:1", "a:2"], true)),
        );
        check(&[], "ID", false, None, Ok((&[], true)));
        check(
            &["a:1", "b:1"],
            "ID",
            false,
            None,
            Err("(must be forced) - image is referenced in multiple repositories"),
        );
        check(
            &["a:1", "b:1"],
            "ID",
            true,
            None,
            Ok((&["a:1", "b:1"], true)),
        );
    }

    #[test]
    fn what_is_in_use_stays() {
        let last = "unable to remove repository reference \"a:1\" (must force) - container 0123456789ab is using";
        let running = "(cannot be forced) - image is being used by running container 0123456789ab";
        let stopped = "(must be forced) - image is being used by stopped container 0123456789ab";
        check(&["a:1"], "a:1", false, Some(true), Err(last));
        check(&["a:1"], "a:1", false, Some(false), Err(last));
        check(&["a:1"], "a:1", true, Some(true), Err(running));
        check(&["a:1"], "a:1", true, Some(false), Ok((&["a:1"], true)));
        check(&["a:1"], "ID", false, Some(true), Err(running));
        check(&["a:1"], "ID", true, Some(true), Err(running));
        check(&["a:1"], "ID", false, Some(false), Err(stopped));
        check(&["a:1"], "ID", true, Some(false), Ok((&["a:1"], true)));
    }
}

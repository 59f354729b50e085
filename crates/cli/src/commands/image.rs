//! `wharf image load|import|ls|rm`: the images on this machine, through the running server.

use std::path::Path;

use anyhow::{Context, bail};
use http::Method;
use tokio::io::AsyncRead;

use super::block_on;
use crate::args::{Format, ImageCommand};
use crate::control::{Control, ImageLine, Removed};
use crate::output::{complain, say};
use crate::{Config, Misuse, Refused, in_words, table};

pub(super) fn run(config: &Config, command: ImageCommand) -> anyhow::Result<()> {
    block_on(async {
        let Some(mut control) = Control::connect(&config.instance.control_socket()).await? else {
            bail!(
                "no wharf runs with {}; start it with `wharf up`",
                config.instance.data_dir.display()
            );
        };
        match command {
            ImageCommand::Load { archives, tag } => load(&mut control, &archives, tag).await,
            ImageCommand::Import { archive, reference } => {
                let stream = open(&archive).await?;
                let path = format!("/images/import?reference={}", encode(&reference));
                let image: ImageLine = control
                    .send_stream(&path, stream)
                    .await
                    .with_context(|| format!("import {}", archive.display()))?;
                say!("{}", image.id);
                Ok(())
            }
            ImageCommand::Ls { output, quiet } => {
                let images: Vec<ImageLine> = control.ask(Method::GET, "/images").await?;
                list(&images, output, quiet)
            }
            ImageCommand::Rm { images, force } => remove(&mut control, &images, force).await,
        }
    })
}

async fn load(
    control: &mut Control,
    archives: &[std::path::PathBuf],
    tag: Option<String>,
) -> anyhow::Result<()> {
    if tag.is_some() && archives.len() > 1 {
        return Err(Misuse("--tag names one image; load one archive at a time".into()).into());
    }
    let path = match tag {
        Some(tag) => format!("/images/load?tag={}", encode(&tag)),
        None => "/images/load".into(),
    };
    for archive in archives {
        let stream = open(archive).await?;
        let images: Vec<ImageLine> = control
            .send_stream(&path, stream)
            .await
            .with_context(|| format!("load {}", archive.display()))?;
        for image in images {
            if image.references.is_empty() {
                say!("Loaded image ID: {}", image.id);
            }
            for reference in image.references {
                say!("Loaded image: {reference}");
            }
        }
    }
    Ok(())
}

async fn open(path: &Path) -> anyhow::Result<Box<dyn AsyncRead + Send + Sync + Unpin>> {
    if path == Path::new("-") {
        return Ok(Box::new(tokio::io::stdin()));
    }
    let file = tokio::fs::File::open(path)
        .await
        .with_context(|| format!("open {}", path.display()))?;
    if file
        .metadata()
        .await
        .is_ok_and(|metadata| metadata.is_dir())
    {
        bail!("{} is a directory; an archive is wanted", path.display());
    }
    Ok(Box::new(file))
}

fn list(images: &[ImageLine], output: Format, quiet: bool) -> anyhow::Result<()> {
    if output == Format::Json {
        say!("{}", serde_json::to_string_pretty(images)?);
        return Ok(());
    }
    if quiet {
        images.iter().for_each(|image| say!("{}", short(&image.id)));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = images
        .iter()
        .flat_map(|image| {
            let names = if image.references.is_empty() {
                vec!["<none>".to_string()]
            } else {
                image.references.clone()
            };
            names.into_iter().map(|name| {
                vec![
                    name,
                    short(&image.id).to_string(),
                    image.created.clone().unwrap_or_else(|| "-".into()),
                    table::bytes(image.size),
                ]
            })
        })
        .collect();
    table::print(&["IMAGE", "ID", "CREATED", "SIZE"], &rows);
    Ok(())
}

/// Every image is tried; the code tells whether all are gone.
async fn remove(control: &mut Control, images: &[String], force: bool) -> anyhow::Result<()> {
    let mut refused = false;
    for image in images {
        let path = format!("/images?name={}&force={force}", encode(image));
        match control.ask::<Removed>(Method::DELETE, &path).await {
            Ok(removed) => {
                removed
                    .untagged
                    .iter()
                    .for_each(|name| say!("Untagged: {name}"));
                removed.deleted.iter().for_each(|id| say!("Deleted: {id}"));
            }
            Err(error) => {
                complain!("wharf: remove {image}: {}", in_words(&error));
                refused = true;
            }
        }
    }
    if refused { Err(Refused.into()) } else { Ok(()) }
}

/// The first twelve digits name an image well enough for people.
fn short(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..12).unwrap_or(digits)
}

/// Percent-encoding of everything that is not unreserved (RFC 3986, section 2.3).
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                (byte as char).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_travel_in_a_query_unharmed() {
        assert_eq!(encode("a/b:1@x &?%"), "a%2Fb%3A1%40x%20%26%3F%25");
    }

    #[test]
    fn ids_are_shortened_for_people() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("abc"), "abc");
    }
}

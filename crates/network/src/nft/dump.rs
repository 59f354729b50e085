//! Reading back what a table has: chains, comments of rules, elements (`NFT_MSG_GET…`).

use super::{FAMILY_ANY, FAMILY_IPV4, header, kind};
use crate::netlink::{Attributes, Connection, Refused};

/// Names of a table's chains; none if there is no such table.
pub(crate) fn chains(connection: &mut Connection, table: &str) -> Result<Vec<String>, Refused> {
    let mut found = Vec::new();
    connection.dump(
        "list chains",
        kind(libc::NFT_MSG_GETCHAIN),
        |message| header(message, FAMILY_IPV4, 0),
        |_, payload| {
            let attributes = payload.get(4..).unwrap_or_default();
            if Attributes::find_text(attributes, 1) == Some(table) {
                found.extend(Attributes::find_text(attributes, 3).map(str::to_owned));
            }
        },
    )?;
    Ok(found)
}

/// Shows each chain of every table: its family, and its attributes.
pub(crate) fn each_chain(
    connection: &mut Connection,
    mut each: impl FnMut(u8, &[u8]),
) -> Result<(), Refused> {
    connection.dump(
        "list chains",
        kind(libc::NFT_MSG_GETCHAIN),
        |message| header(message, FAMILY_ANY, 0),
        |_, payload| {
            if let Some((family, _)) = payload.split_first() {
                each(*family, payload.get(4..).unwrap_or_default());
            }
        },
    )
}

/// Handles and comments of the rules in a chain that have one.
pub(crate) fn comments(
    connection: &mut Connection,
    table: &str,
    chain: &str,
) -> Result<Vec<(u64, String)>, Refused> {
    let mut found = Vec::new();
    connection.dump(
        "list rules",
        kind(libc::NFT_MSG_GETRULE),
        |message| {
            header(message, FAMILY_IPV4, 0);
            message.text(1, table);
            message.text(2, chain);
        },
        |_, payload| {
            let attributes = payload.get(4..).unwrap_or_default();
            let handle = Attributes::find(attributes, 3)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_be_bytes);
            let comment = Attributes::find(attributes, 7).and_then(read_comment);
            // Kernels before 5.19 show the rules of all chains.
            let is_asked_for = Attributes::find_text(attributes, 1) == Some(table)
                && Attributes::find_text(attributes, 2) == Some(chain);
            if let (true, Some(handle), Some(comment)) = (is_asked_for, handle, comment) {
                found.push((handle, comment));
            }
        },
    )?;
    Ok(found)
}
fn read_comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return String::from_utf8(text.to_vec()).ok();
        }
        data = &rest[value.len()..];
    }
    None
}

/// Key and datum of an element that was read back; for a verdict, the name of the chain it leads to.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// All elements of a set or map.
pub(crate) fn elements(
    connection: &mut Connection,
    table: &str,
    set: &str,
) -> Result<Vec<Pair>, Refused> {
    let mut found = Vec::new();
    fn value(entry: &[u8], kind: u16) -> Option<Vec<u8>> {
        let datum = Attributes::find(entry, kind)?;
        if let Some(verdict) = Attributes::find(datum, 2) {
            return Attributes::find_text(verdict, 2).map(|chain| chain.as_bytes().to_vec());
        }
        Attributes::find(datum, 1).map(<[u8]>::to_vec)
    }
    connection.dump(
        "list elements",
        kind(libc::NFT_MSG_GETSETELEM),
        |message| {
            header(message, FAMILY_IPV4, 0);
            message.text(1, table);
            message.text(2, set);
        },
        |_, payload| {
            let list = Attributes::find(payload.get(4..).unwrap_or_default(), 3);
            for (_, entry) in Attributes(list.unwrap_or_default()) {
                let key = value(entry, 1);
                found.extend(key.map(|key| (key, value(entry, 2).unwrap_or_default())));
            }
        },
    )?;
    Ok(found)
}

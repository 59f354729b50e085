//! Which of the remote command protocols two ends speak, and what each of them can.
//!
//! Over WebSocket the protocol is the subprotocol `v5.channel.k8s.io` and older; over SPDY/3.1 it is
//! named by `X-Stream-Protocol-Version`, `v4.channel.k8s.io` and older.

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// No name: the error stream carries text.
    V1,
    /// Bugs of the first in SPDY's closing are gone.
    V2,
    /// Terminals can be resized.
    V3,
    /// The error stream carries a JSON `Status` with the exit code.
    V4,
    /// A client can close a channel.
    V5,
}

impl Version {
    /// All, the newest first.
    const ALL: [(Version, &'static str); 5] = [
        (Version::V5, "v5.channel.k8s.io"),
        (Version::V4, "v4.channel.k8s.io"),
        (Version::V3, "v3.channel.k8s.io"),
        (Version::V2, "v2.channel.k8s.io"),
        (Version::V1, "channel.k8s.io"),
    ];

    /// Its name in headers.
    pub fn name(self) -> &'static str {
        let found = Version::ALL.iter().find(|(version, _)| *version == self);
        found.map_or("", |(_, name)| name)
    }

    /// Standard input can be closed while output goes on.
    pub fn can_close(self) -> bool {
        self >= Version::V5
    }

    /// The end is told by a JSON `Status`; before, by text, and success by nothing.
    pub fn has_status(self) -> bool {
        self >= Version::V4
    }

    /// There is a channel for sizes of the terminal.
    pub fn has_resize(self) -> bool {
        self >= Version::V3
    }
}

/// The newest version up to `newest` among those that the client names (in headers that may be
/// repeated and may hold lists).
pub fn negotiate<'a>(
    offered: impl IntoIterator<Item = &'a str>,
    newest: Version,
) -> Option<Version> {
    let offered: Vec<&str> = offered
        .into_iter()
        .flat_map(|header| header.split(','))
        .map(str::trim)
        .collect();
    Version::ALL
        .iter()
        .filter(|(version, _)| *version <= newest)
        .find(|(_, name)| offered.contains(name))
        .map(|(version, _)| *version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_both_speak() {
        let check = |offered: &[&str], newest, expected| {
            assert_eq!(negotiate(offered.iter().copied(), newest), expected);
        };
        check(&["v5.channel.k8s.io"], Version::V5, Some(Version::V5));
        check(
            &[
                "v4.channel.k8s.io",
                "v3.channel.k8s.io",
                "v2.channel.k8s.io",
                "channel.k8s.io",
            ],
            Version::V4,
            Some(Version::V4),
        );
        check(
            &["v5.channel.k8s.io, v4.channel.k8s.io"],
            Version::V4,
            Some(Version::V4),
        );
        check(&["channel.k8s.io"], Version::V5, Some(Version::V1));
        check(&["base64.channel.k8s.io"], Version::V5, None);
        check(&[], Version::V5, None);
    }
}

//! Links in HTML pages that come through `proxy`: those that lead to the root of the server are made
//! to lead back through the API. Everything else of a page goes through byte by byte.
//!
//! Not a parser of HTML but a scanner of its tags (<https://html.spec.whatwg.org/#tokenization>): it
//! knows where a tag begins and ends, quotes included, and skips comments and the text of scripts and
//! styles. A page is rewritten as it streams; what is held back is one unfinished tag, and of a tag
//! that is too large nothing is rewritten.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Frame;

use crate::Body;

/// Bytes of a tag that is still looked at.
const TAG_BYTES: usize = 64 * 1024;

/// Attributes that hold a URL, by element (HTML, index of attributes, and those that were once).
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["formaction", "src", "usemap"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("track", &["src"]),
    ("video", &["poster", "src"]),
];

/// Rewrites the links of one page.
pub(super) struct Links {
    /// The path of the proxy, fit for an attribute.
    before: String,
    /// What of the page was not passed on yet: the beginning of a tag.
    held: BytesMut,
    /// The element whose text goes on until it is closed.
    raw: Option<&'static str>,
}

impl Links {
    /// For a page below the path `before`.
    pub(super) fn new(before: &str) -> Links {
        let before = before
            .replace('&', "&amp;")
            .replace('"', "&#34;")
            .replace('\'', "&#39;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        Links {
            before,
            held: BytesMut::new(),
            raw: None,
        }
    }

    /// The next piece of the page, rewritten as far as its last whole tag.
    fn push(&mut self, piece: &[u8]) -> Bytes {
        self.held.extend_from_slice(piece);
        let mut out = BytesMut::with_capacity(self.held.len() + 256);
        while let Some(start) = self.next_tag() {
            out.extend_from_slice(&self.held.split_to(start));
            let looked_at = self.held.len().min(TAG_BYTES);
            match tag_end(&self.held[..looked_at]) {
                Some(end) => {
                    let tag = self.held.split_to(end);
                    self.tag(&tag, &mut out);
                }
                // All of it at once: a page of nothing but beginnings must not be looked at again for each.
                None if looked_at == TAG_BYTES => {
                    out.extend_from_slice(&self.held.split_to(looked_at));
                }
                None => return out.freeze(),
            }
        }
        out.extend_from_slice(&self.held.split());
        out.freeze()
    }

    /// Where the next tag, or what may become one, begins.
    fn next_tag(&self) -> Option<usize> {
        let Some(raw) = self.raw else {
            return memchr::memchr(b'<', &self.held);
        };
        let closing = format!("</{raw}");
        memchr::memchr_iter(b'<', &self.held).find(|start| {
            let rest = &self.held[*start..];
            let length = rest.len().min(closing.len());
            rest[..length].eq_ignore_ascii_case(&closing.as_bytes()[..length])
        })
    }

    /// Passes on a whole tag or comment.
    fn tag(&mut self, tag: &[u8], out: &mut BytesMut) {
        let text = String::from_utf8_lossy(tag);
        let closes = text.starts_with("</");
        let name: String = text
            .trim_start_matches(['<', '/'])
            .chars()
            .take_while(char::is_ascii_alphanumeric)
            .collect::<String>()
            .to_ascii_lowercase();
        if closes {
            self.raw = None;
        } else {
            self.raw = ["script", "style"]
                .into_iter()
                .find(|raw| *raw == name && !text.ends_with("/>"));
        }
        let attributes = LINKS.iter().find(|(element, _)| *element == name);
        match (attributes, &text) {
            // Bytes that are no UTF-8 stay what they are.
            (Some((_, attributes)), Cow::Borrowed(text)) if !closes => {
                out.extend_from_slice(self.rewrite(text, attributes).as_bytes());
            }
            _ => out.extend_from_slice(tag),
        }
    }

    /// A tag with its links led through the proxy.
    fn rewrite(&self, tag: &str, links: &[&str]) -> String {
        let mut out = String::with_capacity(tag.len() + self.before.len());
        let mut rest = tag;
        while let Some(equals) = rest.find('=') {
            let (name, value) = rest.split_at(equals + 1);
            let attribute = name
                .trim_end_matches('=')
                .trim_end()
                .rsplit(|character: char| character.is_whitespace() || "\"'/".contains(character))
                .next()
                .unwrap_or_default();
            let is_link = links
                .iter()
                .any(|link| attribute.eq_ignore_ascii_case(link));
            out.push_str(name);
            let blank = value.len() - value.trim_start().len();
            let (blank, value) = value.split_at(blank);
            out.push_str(blank);
            let (opening, ends): (usize, &[char]) = match value.chars().next() {
                Some('"') => (1, &['"']),
                Some('\'') => (1, &['\'']),
                _ => (0, &[' ', '\t', '\n', '\r', '\u{c}', '>']),
            };
            let (quote, value) = value.split_at(opening);
            let end = value.find(ends).unwrap_or(value.len());
            let (link, after) = value.split_at(end);
            out.push_str(quote);
            let of_root = link.starts_with('/') && !link.starts_with("//");
            if is_link && of_root && !link.starts_with(&self.before) {
                out.push_str(&self.before);
            }
            out.push_str(link);
            let closing = opening.min(after.len());
            out.push_str(&after[..closing]);
            rest = &after[closing..];
        }
        out.push_str(rest);
        out
    }

    /// The body of a page, rewritten as it comes.
    pub(super) fn of_body(self, body: Body) -> Body {
        Body::new(Rewritten {
            page: body,
            links: self,
            ended: false,
        })
    }
}

/// The length of the tag or comment at the beginning, if it is whole.
fn tag_end(text: &[u8]) -> Option<usize> {
    const COMMENT: &[u8] = b"<!--";
    let length = text.len().min(COMMENT.len());
    if text[..length] == COMMENT[..length] {
        let end = memchr::memmem::find(text.get(COMMENT.len()..)?, b"-->")?;
        return Some(COMMENT.len() + end + 3);
    }
    match text.get(1) {
        // Not a tag: the bracket stands for itself.
        Some(next) if !(next.is_ascii_alphabetic() || matches!(next, b'/' | b'!' | b'?')) => {
            return Some(1);
        }
        Some(_) => {}
        None => return None,
    }
    let mut quote = None;
    let mut before = b' ';
    for (index, byte) in text.iter().copied().enumerate().skip(1) {
        match (quote, byte) {
            (Some(open), byte) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'>') => return Some(index + 1),
            // A quote opens a value only where a value begins.
            (None, b'"' | b'\'') if before == b'=' => quote = Some(byte),
            (None, _) => {}
        }
        if !byte.is_ascii_whitespace() {
            before = byte;
        }
    }
    None
}

/// A page on its way.
struct Rewritten {
    page: Body,
    links: Links,
    ended: bool,
}

impl http_body::Body for Rewritten {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        while !this.ended {
            let piece = match ready!(Pin::new(&mut this.page).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.links.push(&data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    this.ended = true;
                    this.links.held.split().freeze()
                }
            };
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
        }
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use http_body_util::BodyExt as _;

    async fn rewritten(pieces: &[&str]) -> String {
        let pieces: Vec<Result<Bytes, Infallible>> = pieces
            .iter()
            .map(|piece| Ok(Bytes::copy_from_slice(piece.as_bytes())))
            .collect();
        let body = Body::from_stream(futures::stream::iter(pieces));
        let body = Links::new("/p/proxy").of_body(body);
        let bytes = body.collect().await.expect("a whole page").to_bytes();
        String::from_utf8(bytes.to_vec()).expect("text")
    }

    #[tokio::test]
    async fn links_to_the_root_lead_back() {
        let check = async |page: &str, expected: &str| {
            assert_eq!(rewritten(&[page]).await, expected);
            // However the page is cut into pieces.
            for cut in 1..page.len() {
                assert_eq!(rewritten(&[&page[..cut], &page[cut..]]).await, expected);
            }
        };
        check(
            r#"<a href="/rewriteme">test</a>"#,
            r#"<a href="/p/proxy/rewriteme">test</a>"#,
        )
        .await;
        check(
            "<IMG alt='a > b' SRC=/x.png><a href='y'><a href='//z/'><a href = '/w?a=b&amp;c'>",
            "<IMG alt='a > b' SRC=/p/proxy/x.png><a href='y'><a href='//z/'><a href = '/p/proxy/w?a=b&amp;c'>",
        )
        .await;
        for same in [
            "a < b && c <d href='/x'",
            "<!-- <a href='/x'> -->",
            "<script>if (a<b) x = \"<a href='/x'>\"</script>",
            "<a href='/p/proxy/x'><p href='/x'><a title='/x'>",
            "<a href='/x",
        ] {
            check(same, same).await;
        }
        check(
            "<style>a{}</STYLE><link rel=x href=/s><form action=\"/\">",
            "<style>a{}</STYLE><link rel=x href=/p/proxy/s><form action=\"/p/proxy/\">",
        )
        .await;
    }

    #[tokio::test]
    async fn a_tag_without_end_is_not_held_for_ever() {
        let page = format!("<a href=\"/x{}", "y".repeat(2 * TAG_BYTES));
        let mut links = Links::new("/p");
        let mut out = links.push(page.as_bytes()).len();
        assert!(links.held.len() <= TAG_BYTES, "{}", links.held.len());
        out += links.held.len();
        assert_eq!(out, page.len());
        let beginnings = "<a".repeat(TAG_BYTES);
        assert_eq!(rewritten(&[&beginnings]).await, beginnings);
    }

    #[test]
    fn the_path_cannot_end_an_attribute() {
        let mut links = Links::new("/p\"><script>");
        let page = links.push(b"<a href=\"/x\">");
        assert_eq!(page, "<a href=\"/p&#34;&gt;&lt;script&gt;/x\">");
    }
}

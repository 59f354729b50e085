//! Bytes in JSON: standard base64 with padding, read as strictly as Go reads it.

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The text for some bytes.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let part = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = part(0) << 16 | part(1) << 8 | part(2);
        for place in 0..4 {
            match place <= chunk.len() {
                true => text.push(char::from(DIGITS[(bits >> (18 - 6 * place) & 63) as usize])),
                false => text.push('='),
            }
        }
    }
    text
}

/// The bytes of a canonical text; `None` if it is none.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    canonical(text).ok()?;
    let digits = text
        .bytes()
        .filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte));
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(text.len() / 4 * 3), 0_u32, 0);
    for digit in digits {
        bits = bits << 6 | digit as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Some(bytes)
}

/// `None` if the text is canonical already, the text without line breaks if it had some, and the offset of the
/// first wrong byte as the error.
pub(crate) fn canonical(text: &str) -> Result<Option<String>, usize> {
    let digit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    let bytes: Vec<(usize, u8)> = text
        .bytes()
        .enumerate()
        .filter(|(_, byte)| !matches!(byte, b'\r' | b'\n'))
        .collect();
    let end = text.len();
    for (quad, chunk) in bytes.chunks(4).enumerate() {
        let Some(place) = chunk.iter().position(|(_, byte)| !digit(*byte)) else {
            match chunk.len() {
                4 => continue,
                _ => return Err(end - chunk.len()),
            }
        };
        let (offset, byte) = chunk[place];
        if byte != b'=' || place < 2 {
            return Err(offset);
        }
        let padded = chunk[place..].iter().all(|(_, byte)| *byte == b'=');
        match bytes.get((quad + 1) * 4) {
            _ if chunk.len() < 4 => return Err(end),
            _ if !padded => return Err(chunk.get(place + 1).map_or(end, |(offset, _)| *offset)),
            Some((offset, _)) => return Err(*offset),
            None => {}
        }
    }
    let plain = bytes.len() == text.len();
    Ok((!plain).then(|| bytes.iter().map(|(_, byte)| char::from(*byte)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_went() {
        for length in 0..20_u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(97)).collect();
            assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
    }

    #[test]
    fn a_wrong_text_is_refused_at_its_first_wrong_byte() {
        let check = |text: &str, expected: Result<Option<&str>, usize>| {
            assert_eq!(
                canonical(text),
                expected.map(|text| text.map(str::to_owned)),
                "{text}"
            );
        };
        check("YWJj", Ok(None));
        check("YWJ\nj", Ok(Some("YWJj")));
        check("YQ==", Ok(None));
        check("YQ=", Err(3));
        check("a b", Err(1));
        check("Y=Jj", Err(1));
        check("YWJjY", Err(4));
        check("YQ==YQ==", Err(4));
    }
}

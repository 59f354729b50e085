//! The short name of a pod template.

use k8s_openapi::api::core::v1::PodTemplateSpec;

/// Letters and digits that make no words: those of upstream's generated names.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A name of up to ten letters that depends on the template and on how often that name was found to
/// be taken. It is deterministic, but not upstream's, which hashes how Go prints the template; nobody
/// may rely on it, for a new template is recognised by comparing it with the old ones.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    // Maps are sorted in this form, so equal templates give equal text.
    let text = serde_json::to_value(template)
        .unwrap_or_default()
        .to_string();
    let mut hash = fnv1a(0x811c_9dc5, text.as_bytes());
    if let Some(collisions) = collisions {
        hash = fnv1a(hash, &collisions.to_le_bytes());
    }
    let digits = hash.to_string();
    digits
        .bytes()
        .map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]))
        .collect()
}

/// FNV-1a of 32 bits.
fn fnv1a(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hash_depends_on_the_template_and_the_collisions_only() {
        let template = |image: &str| -> PodTemplateSpec {
            let template = json!({"metadata": {"labels": {"b": "1", "a": "2"}},
                "spec": {"containers": [{"name": "c", "image": image}]}});
            serde_json::from_value(template).expect("is a template")
        };
        let hash = template_hash(&template("a:1"), None);
        assert_eq!(hash, template_hash(&template("a:1"), None));
        assert_ne!(hash, template_hash(&template("a:2"), None));
        assert_ne!(hash, template_hash(&template("a:1"), Some(1)));
        assert!((5..=10).contains(&hash.len()), "{hash}");
        assert!(
            hash.bytes().all(|letter| ALPHABET.contains(&letter)),
            "{hash}"
        );
    }

    #[test]
    fn fnv1a_is_the_published_one() {
        assert_eq!(fnv1a(0x811c_9dc5, b""), 0x811c_9dc5);
        assert_eq!(fnv1a(0x811c_9dc5, b"foobar"), 0xbf9c_f968);
    }
}

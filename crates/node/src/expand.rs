//! `$(NAME)` in commands, arguments, values and sub-paths.

/// Replaces references to what `value_of` knows. `$$` is a dollar sign, so `$$(NAME)` stays as
/// `$(NAME)`; references to unknown names, and parentheses that never close, stay as they are
/// (Kubernetes API reference, `Container.command`).
pub(crate) fn expand(text: &str, value_of: impl Fn(&str) -> Option<String>) -> String {
    let mut output = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        output.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            output.push('$');
            rest = after;
            continue;
        }
        match after
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            Some((name, after)) => {
                match value_of(name) {
                    Some(value) => output.push_str(&value),
                    None => {
                        output.push_str("$(");
                        output.push_str(name);
                        output.push(')');
                    }
                }
                rest = after;
            }
            None => {
                output.push('$');
                rest = after;
            }
        }
    }
    output.push_str(rest);
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let value_of = |name: &str| match name {
            "A" => Some("2".to_owned()),
            "NEST" => Some("$(A)".to_owned()),
            _ => None,
        };
        assert_eq!(expand(text, value_of), expected);
    }

    #[test]
    fn references_are_replaced_once() {
        check("", "");
        check("plain", "plain");
        check("$(A)", "2");
        check("-$(A)$(A)-", "-22-");
        // The value that genuine Kubernetes gave for this text.
        check("$(A) $$(A) $(NOPE) $(B", "2 $(A) $(NOPE) $(B");
        check("$(NEST)", "$(A)");
        check("$", "$");
        check("$$", "$");
        check("$$$(A)", "$2");
        check("$A ${A}", "$A ${A}");
        check("é$(A)ü", "é2ü");
    }
}

//! Choosing objects by their labels or fields.

use std::fmt;

use serde_json::Value;

use crate::names;

/// A choice of objects by their labels. All requirements must hold; an empty selector chooses everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    In,
    Unequal,
    NotIn,
    Exists,
    Absent,
    Greater,
    Less,
}

/// The text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// A label selector that cannot be read; the text is upstream's.
    #[error("unable to parse requirement: {0}")]
    Requirement(String),
    /// A label selector that begins with something else than a key.
    #[error("found '{0}', expected: !, identifier, or 'end of string'")]
    Start(String),
    /// A label selector in which something else than a comma stands between two requirements.
    #[error("found '{0}', expected: ',' or 'end of string'")]
    Separator(String),
    /// A label selector that ends in a comma.
    #[error("found '{0}', expected: identifier after ','")]
    AfterComma(String),
    /// A field selector with a term that is no comparison.
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    FieldTerm {
        /// The whole selector.
        selector: String,
        /// The term.
        term: String,
    },
    /// A field selector that has a backslash before something that needs none.
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// A `LabelSelector` object with an unknown operator.
    #[error("\"{0}\" is not a valid label selector operator")]
    Operator(String),
}

impl Selector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1,m<2`.
    pub fn parse(text: &str) -> Result<Selector, SelectorError> {
        let mut parser = Parser {
            tokens: tokens(text),
            at: 0,
        };
        let mut requirements = parser.requirements()?;
        requirements.sort_by(|left, right| left.key.cmp(&right.key));
        Ok(Selector { requirements })
    }

    /// A `LabelSelector` object; `None` chooses nothing, as upstream's nil selector does.
    pub fn from_object(object: &Value) -> Result<Option<Selector>, SelectorError> {
        if object.is_null() {
            return Ok(None);
        }
        let mut requirements = from_map(&object["matchLabels"]);
        for expression in object["matchExpressions"].as_array().into_iter().flatten() {
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::Absent,
                other => return Err(SelectorError::Operator(other.to_owned())),
            };
            let values = expression["values"].as_array().into_iter().flatten();
            requirements.push(Requirement {
                key: expression["key"].as_str().unwrap_or_default().to_owned(),
                operator,
                values: values
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
            });
        }
        Ok(Some(Selector { requirements }))
    }

    /// A plain map of labels, such as a Service's selector.
    pub fn from_labels(labels: &Value) -> Selector {
        Selector {
            requirements: from_map(labels),
        }
    }

    /// Whether everything is chosen.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object with these labels (`metadata.labels`, may be null) is chosen.
    pub fn matches(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels[key].as_str())
    }

    /// Whether an object is chosen whose labels `label` looks up.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements
            .iter()
            .all(|requirement| requirement.matches(label(&requirement.key)))
    }
}

fn from_map(labels: &Value) -> Vec<Requirement> {
    let entries = labels.as_object().into_iter().flatten();
    entries
        .map(|(key, value)| Requirement {
            key: key.clone(),
            operator: Operator::Equal,
            values: vec![value.as_str().unwrap_or_default().to_owned()],
        })
        .collect()
}

impl fmt::Display for Selector {
    /// The text from which the selector could be parsed again, sorted by key.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<&Requirement> = self.requirements.iter().collect();
        sorted.sort_by(|left, right| left.key.cmp(&right.key));
        for (
            index,
            Requirement {
                key,
                operator,
                values,
            },
        ) in sorted.into_iter().enumerate()
        {
            let comma = if index > 0 { "," } else { "" };
            let mut values = values.clone();
            values.sort();
            let values = values.join(",");
            match operator {
                Operator::Equal => write!(out, "{comma}{key}={values}")?,
                Operator::Unequal => write!(out, "{comma}{key}!={values}")?,
                Operator::In => write!(out, "{comma}{key} in ({values})")?,
                Operator::NotIn => write!(out, "{comma}{key} notin ({values})")?,
                Operator::Exists => write!(out, "{comma}{key}")?,
                Operator::Absent => write!(out, "{comma}!{key}")?,
                Operator::Greater => write!(out, "{comma}{key}>{values}")?,
                Operator::Less => write!(out, "{comma}{key}<{values}")?,
            }
        }
        Ok(())
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = self.values.first().and_then(|text| number(text));
        match (self.operator, value) {
            (Operator::In | Operator::Equal, Some(value)) => {
                self.values.iter().any(|known| known == value)
            }
            (Operator::NotIn | Operator::Unequal, Some(value)) => {
                self.values.iter().all(|known| known != value)
            }
            (Operator::NotIn | Operator::Unequal | Operator::Absent, None) => true,
            (Operator::Exists, value) => value.is_some(),
            (Operator::Greater, Some(value)) => number(value)
                .zip(bound)
                .is_some_and(|(value, bound)| value > bound),
            (Operator::Less, Some(value)) => number(value)
                .zip(bound)
                .is_some_and(|(value, bound)| value < bound),
            _ => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(word) => word,
            Token::Symbol(symbol) => symbol,
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            found.push(Token::Symbol(symbol));
            rest = &rest[symbol.len()..];
        } else {
            let end = rest
                .find(|symbol: char| symbol.is_whitespace() || "=!(),><".contains(symbol))
                .unwrap_or(rest.len());
            found.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    found
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn take(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Symbol(next)) if *next == symbol);
        self.at += usize::from(found);
        found
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        while let Some(token) = self.peek() {
            if !matches!(token, Token::Word(_) | Token::Symbol("!")) {
                return Err(SelectorError::Start(token.text().to_owned()));
            }
            requirements.push(self.requirement()?);
            match self.next() {
                None => break,
                Some(Token::Symbol(",")) => match self.peek() {
                    Some(Token::Word(_) | Token::Symbol("!")) => {}
                    other => {
                        return Err(SelectorError::AfterComma(
                            other.map(Token::text).unwrap_or_default().to_owned(),
                        ));
                    }
                },
                Some(other) => return Err(SelectorError::Separator(other.text().to_owned())),
            }
        }
        Ok(requirements)
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let absent = self.take("!");
        let key = match self.next() {
            Some(Token::Word(key)) => key,
            other => {
                let found = other.as_ref().map(Token::text).unwrap_or_default();
                return Err(SelectorError::Requirement(format!(
                    "found '{found}', expected: identifier"
                )));
            }
        };
        if let Some(text) = names::qualified_name(&key).first() {
            return Err(SelectorError::Requirement(format!(
                "<nil>: Invalid value: {}: {text}",
                crate::quote(&key)
            )));
        }
        if absent || matches!(self.peek(), None | Some(Token::Symbol(","))) {
            let operator = if absent {
                Operator::Absent
            } else {
                Operator::Exists
            };
            return Ok(Requirement {
                key,
                operator,
                values: Vec::new(),
            });
        }
        let (operator, values) = match self.next() {
            Some(Token::Symbol("=" | "==")) => (Operator::Equal, vec![self.exact_value()?]),
            Some(Token::Symbol("!=")) => (Operator::Unequal, vec![self.exact_value()?]),
            Some(Token::Symbol(">")) => (Operator::Greater, vec![self.exact_value()?]),
            Some(Token::Symbol("<")) => (Operator::Less, vec![self.exact_value()?]),
            Some(Token::Word(word)) if word == "in" => (Operator::In, self.values()?),
            Some(Token::Word(word)) if word == "notin" => (Operator::NotIn, self.values()?),
            other => {
                let found = other.as_ref().map(Token::text).unwrap_or_default();
                let text = format!("found '{found}', expected: in, notin, =, ==, !=, gt, lt");
                return Err(SelectorError::Requirement(text));
            }
        };
        let number = matches!(operator, Operator::Greater | Operator::Less);
        for value in &values {
            if number && value.parse::<i64>().is_err() {
                let text = "for 'Gt', 'Lt' operators, the value must be an integer";
                return Err(SelectorError::Requirement(format!(
                    "values[0]: Invalid value: {}: {text}",
                    crate::quote(value)
                )));
            }
            if let Some(text) = names::label_value(value).first() {
                let place = format!("values[0][{key}]");
                return Err(SelectorError::Requirement(format!(
                    "{place}: Invalid value: {}: {text}",
                    crate::quote(value)
                )));
            }
        }
        Ok(Requirement {
            key,
            operator,
            values,
        })
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        match self.peek().cloned() {
            None | Some(Token::Symbol(",")) => Ok(String::new()),
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            Some(other) => Err(SelectorError::Requirement(format!(
                "found '{}', expected: identifier",
                other.text()
            ))),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        if !self.take("(") {
            let found = self.peek().map(Token::text).unwrap_or_default();
            return Err(SelectorError::Requirement(format!(
                "found '{found}' expected: '('"
            )));
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Some(Token::Word(word)) => values.push(word),
                Some(Token::Symbol(",")) => {
                    values.push(String::new());
                    continue;
                }
                Some(Token::Symbol(")")) => {
                    values.push(String::new());
                    break;
                }
                other => {
                    let found = other.as_ref().map(Token::text).unwrap_or_default();
                    let text = format!("found '{found}', expected: ',', ')' or identifier");
                    return Err(SelectorError::Requirement(text));
                }
            }
            match self.next() {
                Some(Token::Symbol(",")) => {}
                Some(Token::Symbol(")")) => break,
                other => {
                    let found = other.as_ref().map(Token::text).unwrap_or_default();
                    return Err(SelectorError::Requirement(format!(
                        "found '{found}', expected: ',' or ')'"
                    )));
                }
            }
        }
        Ok(values)
    }
}

/// A choice of objects by their fields: `metadata.name=a,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

/// One comparison of a [`FieldSelector`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    /// The field: `spec.nodeName`.
    pub field: String,
    /// What it is compared with.
    pub value: String,
    /// Whether it must be the same (`=`, `==`) or must differ (`!=`).
    pub equal: bool,
}

impl FieldSelector {
    /// Reads `a=b,c==d,e!=f`; backslash escapes backslash, comma and equals sign in values.
    pub fn parse(text: &str) -> Result<FieldSelector, SelectorError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let wrong = || SelectorError::FieldTerm {
                selector: text.to_owned(),
                term: term.to_owned(),
            };
            let place = operator_place(term).ok_or_else(wrong)?;
            let (field, rest) = term.split_at(place);
            let (equal, value) = match (rest.strip_prefix("!="), rest.strip_prefix("==")) {
                (Some(value), _) => (false, value),
                (_, Some(value)) => (true, value),
                _ => (true, &rest[1..]),
            };
            terms.push(FieldTerm {
                field: field.to_owned(),
                value: unescape(value)?,
                equal,
            });
        }
        Ok(FieldSelector { terms })
    }

    /// The objects whose `field` is `value`.
    pub fn exactly(field: &str, value: &str) -> FieldSelector {
        FieldSelector {
            terms: vec![FieldTerm {
                field: field.to_owned(),
                value: value.to_owned(),
                equal: true,
            }],
        }
    }

    /// What both select.
    #[must_use]
    pub fn and(mut self, other: FieldSelector) -> FieldSelector {
        self.terms.extend(other.terms);
        self
    }

    /// The comparisons, for checking that the kind knows the fields.
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// Whether everything is chosen.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether an object with these fields is chosen; a field that is not there counts as empty.
    pub fn matches(&self, fields: &[(&'static str, String)]) -> bool {
        self.terms.iter().all(|term| {
            let actual = fields
                .iter()
                .find(|(name, _)| *name == term.field)
                .map_or("", |(_, value)| value);
            (actual == term.value) == term.equal
        })
    }

    /// The value that a field must have exactly, if the selector asks for one.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|term| term.equal && term.field == field)
            .map(|term| &*term.value)
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, symbol) in text.char_indices() {
        match symbol {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn operator_place(term: &str) -> Option<usize> {
    (0..term.len()).find(|at| {
        term.is_char_boundary(*at)
            && (term[*at..].starts_with("!=") || term[*at..].starts_with('='))
    })
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut symbols = value.chars();
    while let Some(symbol) = symbols.next() {
        match symbol {
            '\\' => match symbols.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                Some(other) => return Err(SelectorError::Escape(format!("\\{other}"))),
                None => return Err(SelectorError::Escape("\\".to_owned())),
            },
            other => out.push(other),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_match_as_the_selector_says() {
        let labels = json!({"app": "web", "tier": "front", "n": "5"});
        let check = |text: &str, expected: bool| {
            assert_eq!(
                Selector::parse(text).expect(text).matches(&labels),
                expected,
                "{text}"
            );
        };
        check("", true);
        check("app=web", true);
        check("app==web,tier=front", true);
        check("app!=web", false);
        check("other!=web", true);
        check("app in (web, api)", true);
        check("app notin (web)", false);
        check("other notin (web)", true);
        check("app", true);
        check("!app", false);
        check("!other", true);
        check("n>4,n<6", true);
        check("n>5", false);
    }

    #[test]
    fn a_bad_label_selector_is_told_in_the_words_of_upstream() {
        let check = |text: &str, expected: &str| {
            assert_eq!(
                Selector::parse(text).map_err(|error| error.to_string()),
                Err(expected.to_owned()),
                "{text}"
            );
        };
        check(
            "=web",
            "found '=', expected: !, identifier, or 'end of string'",
        );
        check("app=web,", "found '', expected: identifier after ','");
        check(
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        );
        check(
            "a in b",
            "unable to parse requirement: found 'b' expected: '('",
        );
        check("a=b=c", "found '=', expected: ',' or 'end of string'");
    }

    #[test]
    fn selector_objects_choose_like_their_text() {
        let object = json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]});
        let selector = Selector::from_object(&object)
            .expect("well-formed")
            .expect("not null");
        assert!(selector.matches(&json!({"app": "web", "tier": "x"})));
        assert!(!selector.matches(&json!({"app": "web"})));
        assert_eq!(Selector::from_object(&Value::Null), Ok(None));
    }

    #[test]
    fn fields_match_as_the_selector_says() {
        let fields = [
            ("metadata.name", "a,b".to_owned()),
            ("status.phase", "Running".to_owned()),
        ];
        let check = |text: &str, expected: bool| {
            assert_eq!(
                FieldSelector::parse(text).expect(text).matches(&fields),
                expected,
                "{text}"
            );
        };
        check("metadata.name=a\\,b", true);
        check("status.phase!=Running", false);
        check("status.phase==Running,metadata.name!=c", true);
        assert!(FieldSelector::parse("status.phase").is_err());
    }
}

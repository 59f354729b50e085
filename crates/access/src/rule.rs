//! One rule, and what it allows.

use serde::{Deserialize, Serialize};

use crate::{Attributes, Subject};

const ALL: &str = "*";

/// A PolicyRule (rbac.authorization.k8s.io/v1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs, or `*`.
    pub verbs: Vec<String>,
    /// API groups, or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// `resource`, `resource/subresource`, `*/subresource`, or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names that the rule is restricted to; none means all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths, with `*` as the last letter for everything below.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    /// Whether it allows a request.
    pub fn allows(&self, attributes: &Attributes<'_>) -> bool {
        if !has(&self.verbs, attributes.verb) {
            return false;
        }
        match attributes.subject {
            Subject::Path(path) => self.allows_path(path),
            Subject::Resource {
                group,
                resource,
                subresource,
                name,
                ..
            } => {
                has(&self.api_groups, group)
                    && self.allows_resource(resource, subresource)
                    && (self.resource_names.is_empty()
                        || self.resource_names.iter().any(|allowed| allowed == name))
            }
        }
    }

    fn allows_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|allowed| {
            if allowed == ALL {
                return true;
            }
            match allowed.split_once('/') {
                None => subresource.is_empty() && allowed == resource,
                Some((main, sub)) => sub == subresource && (main == ALL || main == resource),
            }
        })
    }

    fn allows_path(&self, path: &str) -> bool {
        self.non_resource_urls
            .iter()
            .any(|allowed| match allowed.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => allowed == path,
            })
    }

    /// The parts of this rule, each about one verb and one thing, that no rule of `owned` covers.
    /// Empty when a holder of `owned` may hand this rule out (RBAC, "privilege escalation prevention").
    pub fn not_covered_by(&self, owned: &[&Rule]) -> Vec<Rule> {
        self.atoms()
            .into_iter()
            .filter(|atom| !owned.iter().any(|rule| rule.covers(atom)))
            .collect()
    }

    /// Whether everything that an atom allows is allowed by this rule.
    fn covers(&self, atom: &Rule) -> bool {
        let within = |wide: &[String], narrow: &[String]| narrow.iter().all(|one| has(wide, one));
        if !within(&self.verbs, &atom.verbs) {
            return false;
        }
        if let Some(path) = atom.non_resource_urls.first() {
            return self.allows_path(path);
        }
        let resource = atom.resources.first().map_or("", String::as_str);
        let (main, sub) = resource.split_once('/').unwrap_or((resource, ""));
        within(&self.api_groups, &atom.api_groups)
            && self.allows_resource(main, sub)
            && (self.resource_names.is_empty()
                || atom
                    .resource_names
                    .first()
                    .is_some_and(|name| self.resource_names.contains(name)))
    }

    fn atoms(&self) -> Vec<Rule> {
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for path in &self.non_resource_urls {
                atoms.push(Rule {
                    verbs: vec![verb.clone()],
                    non_resource_urls: vec![path.clone()],
                    ..Rule::default()
                });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let atom = |names: Vec<String>| Rule {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        resource_names: names,
                        ..Rule::default()
                    };
                    if self.resource_names.is_empty() {
                        atoms.push(atom(Vec::new()));
                    }
                    atoms.extend(
                        self.resource_names
                            .iter()
                            .map(|name| atom(vec![name.clone()])),
                    );
                }
            }
        }
        atoms
    }
}

fn has(allowed: &[String], wanted: &str) -> bool {
    allowed.iter().any(|one| one == ALL || one == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::User;

    fn rule(json: &str) -> Rule {
        serde_json::from_str(json).expect("a rule")
    }

    fn check(rule_json: &str, verb: &str, path: &str, expected: bool) {
        // "group/namespace/resource/subresource/name", or a path that begins with a slash.
        let subject = if path.starts_with('/') {
            Subject::Path(path)
        } else {
            let parts: Vec<&str> = path.split('|').collect();
            Subject::Resource {
                group: parts[0],
                namespace: "default",
                resource: parts[1],
                subresource: parts[2],
                name: parts[3],
            }
        };
        let user = User {
            name: "jane",
            groups: &[],
        };
        let attributes = Attributes {
            user,
            verb,
            subject,
        };
        assert_eq!(
            rule(rule_json).allows(&attributes),
            expected,
            "{rule_json} {verb} {path}"
        );
    }

    #[test]
    fn a_rule_allows_what_it_names_and_nothing_else() {
        let pods = r#"{"verbs":["get"],"apiGroups":[""],"resources":["pods"]}"#;
        check(pods, "get", "|pods||web", true);
        check(pods, "list", "|pods||", false);
        check(pods, "get", "|pods|log|web", false);
        check(pods, "get", "apps|pods||web", false);
        let log = r#"{"verbs":["*"],"apiGroups":["*"],"resources":["pods/log","*/scale"]}"#;
        check(log, "get", "|pods|log|web", true);
        check(log, "update", "apps|deployments|scale|web", true);
        check(log, "update", "apps|deployments||web", false);
        let named = r#"{"verbs":["get"],"apiGroups":[""],"resources":["*"],"resourceNames":["a"]}"#;
        check(named, "get", "|secrets||a", true);
        check(named, "get", "|secrets||b", false);
        check(named, "get", "|secrets||", false);
        let paths = r#"{"verbs":["get"],"nonResourceURLs":["/healthz","/api/*"]}"#;
        check(paths, "get", "/healthz", true);
        check(paths, "get", "/healthz/x", false);
        check(paths, "get", "/api/v1", true);
        check(paths, "get", "|pods||web", false);
    }

    #[test]
    fn a_rule_is_covered_part_by_part() {
        let owned = [
            rule(r#"{"verbs":["get","list"],"apiGroups":[""],"resources":["pods"]}"#),
            rule(
                r#"{"verbs":["get"],"apiGroups":[""],"resources":["secrets"],"resourceNames":["a"]}"#,
            ),
        ];
        let owned: Vec<&Rule> = owned.iter().collect();
        let missing = |json: &str| rule(json).not_covered_by(&owned).len();
        assert_eq!(
            missing(r#"{"verbs":["get","list"],"apiGroups":[""],"resources":["pods"]}"#),
            0
        );
        assert_eq!(
            missing(r#"{"verbs":["get","watch"],"apiGroups":[""],"resources":["pods"]}"#),
            1
        );
        assert_eq!(
            missing(r#"{"verbs":["*"],"apiGroups":["*"],"resources":["*"]}"#),
            1
        );
        assert_eq!(
            missing(r#"{"verbs":["get"],"apiGroups":[""],"resources":["secrets"]}"#),
            1
        );
        assert_eq!(
            missing(
                r#"{"verbs":["get"],"apiGroups":[""],"resources":["secrets"],"resourceNames":["a","b"]}"#
            ),
            1
        );
    }
}

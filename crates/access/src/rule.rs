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
    /// None when a holder of `owned` may hand this rule out (RBAC, "privilege escalation prevention").
    ///
    /// A short rule has as many parts as the product of its lists is long, so they are made one by
    /// one and only as they are asked for. `compared` counts down with each; when it is used up, the
    /// rule as a whole counts as not covered.
    pub fn not_covered_by<'a>(
        &'a self,
        owned: &'a [&'a Rule],
        compared: &'a mut usize,
    ) -> impl Iterator<Item = Rule> + 'a {
        let whole = owned.iter().any(|rule| rule.covers(self));
        let mut exhausted = false;
        (!whole)
            .then(|| self.atoms())
            .into_iter()
            .flatten()
            .map_while(move |atom| {
                if exhausted {
                    return None;
                }
                match compared.checked_sub(1) {
                    Some(left) => {
                        *compared = left;
                        let covered = owned.iter().any(|rule| rule.covers(&atom));
                        Some((!covered).then_some(atom))
                    }
                    None => {
                        exhausted = true;
                        Some(Some(self.clone()))
                    }
                }
            })
            .flatten()
    }

    /// Whether everything that `part` allows is allowed by this rule.
    fn covers(&self, part: &Rule) -> bool {
        let within = |wide: &[String], narrow: &[String]| narrow.iter().all(|one| has(wide, one));
        within(&self.verbs, &part.verbs)
            && part
                .non_resource_urls
                .iter()
                .all(|path| self.allows_path(path))
            && within(&self.api_groups, &part.api_groups)
            && part.resources.iter().all(|resource| {
                let (main, sub) = resource.split_once('/').unwrap_or((resource, ""));
                self.allows_resource(main, sub)
            })
            && self.covers_names(part)
    }

    fn covers_names(&self, part: &Rule) -> bool {
        if self.resource_names.is_empty() || part.resources.is_empty() {
            return true;
        }
        let named = !part.resource_names.is_empty();
        named
            && part
                .resource_names
                .iter()
                .all(|name| self.resource_names.contains(name))
    }

    /// In upstream's order.
    fn atoms(&self) -> impl Iterator<Item = Rule> + '_ {
        let things = self.api_groups.iter().flat_map(move |group| {
            self.resources.iter().flat_map(move |resource| {
                self.verbs.iter().flat_map(move |verb| {
                    self.name_lists().map(move |resource_names| Rule {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        resource_names,
                        ..Rule::default()
                    })
                })
            })
        });
        let paths = self.non_resource_urls.iter().flat_map(move |path| {
            self.verbs.iter().map(move |verb| Rule {
                verbs: vec![verb.clone()],
                non_resource_urls: vec![path.clone()],
                ..Rule::default()
            })
        });
        things.chain(paths)
    }

    /// The names that parts of this rule are restricted to: one for each, or none at all.
    fn name_lists(&self) -> impl Iterator<Item = Vec<String>> + '_ {
        let unnamed = self.resource_names.is_empty().then(Vec::new);
        let named = self.resource_names.iter().map(|name| vec![name.clone()]);
        unnamed.into_iter().chain(named)
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
        let missing = |json: &str| {
            let mut compared = 100;
            rule(json).not_covered_by(&owned, &mut compared).count()
        };
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

    #[test]
    fn a_short_rule_with_many_parts_costs_no_more_than_it_may() {
        let many = |name: &str| (0..1000).map(|i| format!("{name}{i}")).collect::<Vec<_>>();
        let bomb = Rule {
            verbs: many("v"),
            api_groups: many("g"),
            resources: many("r"),
            resource_names: many("n"),
            ..Rule::default()
        };
        let half = |verbs: Vec<String>| Rule {
            verbs,
            ..rule(r#"{"apiGroups":["*"],"resources":["*"]}"#)
        };
        let (all, low, high) = (
            half(vec!["*".into()]),
            half(many("v")[..500].to_vec()),
            half(many("v")[500..].to_vec()),
        );
        let missing = |owned: &[&Rule]| {
            let mut compared = 1000;
            let first = bomb.not_covered_by(owned, &mut compared).next();
            (first, 1000 - compared)
        };
        assert_eq!(missing(&[&all]), (None, 0));
        let (first, compared) = missing(&[]);
        assert_eq!(
            (first.map(|rule| rule.verbs), compared),
            (Some(vec!["v0".into()]), 1)
        );
        // Covered, but only part by part: too many to look at.
        assert_eq!(missing(&[&low, &high]), (Some(bomb.clone()), 1000));
    }
}

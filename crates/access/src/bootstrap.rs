//! The roles and bindings that every cluster begins with.

use serde_json::Value;

/// One object a line. The names and rules are those that Kubernetes documents as default roles;
/// roles of controllers that this program does not have are left out.
const OBJECTS: &str = include_str!("../data/bootstrap.jsonl");

/// ClusterRoles, ClusterRoleBindings, Roles and RoleBindings, complete but for what a server sets.
/// `admin`, `edit` and `view` carry the rules that aggregation gives them.
pub fn bootstrap() -> Vec<Value> {
    OBJECTS
        .lines()
        .map(|line| serde_json::from_str(line).expect("the file is part of the program and tested"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_an_object_and_every_binding_finds_its_role() {
        let objects = bootstrap();
        assert!(
            objects
                .iter()
                .any(|object| object["metadata"]["name"] == "cluster-admin")
        );
        for binding in objects
            .iter()
            .filter(|object| object["roleRef"].is_object())
        {
            let role = &binding["roleRef"];
            let found = objects.iter().any(|object| {
                object["kind"] == role["kind"]
                    && object["metadata"]["name"] == role["name"]
                    && (role["kind"] == "ClusterRole"
                        || object["metadata"]["namespace"] == binding["metadata"]["namespace"])
            });
            assert!(found, "{binding}");
        }
    }
}

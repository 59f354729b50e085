//! Binding: a pod's assignment to a node.

use crate::fault::{Fault, Path};
use crate::read::text;
use crate::rules::Rules;

pub(crate) const RULES: Rules = Rules {
    validate: |binding, faults| {
        let path = Path::new("target");
        let target = &binding["target"];
        let kind = text(target, "kind");
        if !kind.is_empty() && kind != "Node" {
            faults.push(Fault::not_supported(
                path.child("kind"),
                kind,
                &["Node", "<empty>"],
            ));
        }
        if text(target, "name").is_empty() {
            faults.push(Fault::required(path.child("name"), ""));
        }
    },
    ..Rules::PLAIN
};

//! Eviction: a polite request to delete a pod.

use crate::rules::Rules;

pub(crate) const RULES: Rules = Rules {
    // The pod is named by the path.
    name: |_, _| Vec::new(),
    ..Rules::PLAIN
};

//! ServiceAccount.

use crate::metadata;
use crate::rules::Rules;
use crate::table::{Heading, age_cell};

pub(crate) const RULES: Rules = Rules {
    warnings: |account| {
        let key = "kubernetes.io/enforce-mountable-secrets";
        match account["metadata"]["annotations"][key].is_null() {
            true => Vec::new(),
            false => {
                let words = "deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets";
                vec![format!("metadata.annotations[{key}]: {words}")]
            }
        }
    },
    columns: &[Heading::NAME, Heading::AGE],
    cells: |account, now| vec![metadata::name(account).into(), age_cell(account, now)],
    ..Rules::PLAIN
};

//! ServiceAccount.

use crate::metadata;
use crate::rules::Rules;
use crate::table::{Heading, age_cell};

pub(crate) const RULES: Rules = Rules {
    columns: &[Heading::NAME, Heading::AGE],
    cells: |account, now| vec![metadata::name(account).into(), age_cell(account, now)],
    ..Rules::PLAIN
};

//! TokenRequest: a new token for a service account.

use crate::rules::Rules;

pub(crate) const RULES: Rules = Rules {
    default: |request| {
        if request["spec"]["expirationSeconds"].is_null() {
            request["spec"]["expirationSeconds"] = 3600.into();
        }
    },
    ..Rules::PLAIN
};

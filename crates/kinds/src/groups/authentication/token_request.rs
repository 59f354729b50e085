//! TokenRequest: a new token for a service account.

use crate::fault::{Fault, Path};
use crate::rules::Rules;

const EXPIRATION: Path<'static> = Path::new("spec.expirationSeconds");

pub(crate) const RULES: Rules = Rules {
    // The account is named by the path.
    name: |_, _| Vec::new(),
    default: |request| {
        if request["spec"]["expirationSeconds"].is_null() {
            request["spec"]["expirationSeconds"] = 3600.into();
        }
    },
    validate: |request, faults| {
        let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(0);
        if seconds < 600 {
            faults.push(Fault::invalid(
                EXPIRATION,
                seconds,
                "may not specify a duration less than 10 minutes",
            ));
        }
        if seconds > 1 << 32 {
            faults.push(Fault::invalid(
                EXPIRATION,
                seconds,
                "may not specify a duration larger than 2^32 seconds",
            ));
        }
    },
    ..Rules::PLAIN
};

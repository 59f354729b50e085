//! Lease.

use serde_json::Value;

use crate::fault::{Fault, Path};
use crate::metadata;
use crate::metadata::NOT_NEGATIVE;
use crate::read::text;
use crate::rules::Rules;
use crate::table::{Heading, age_cell};

pub(crate) const RULES: Rules = Rules {
    validate,
    validate_update: |new, _, _, faults| validate(new, faults),
    columns: &[
        Heading::NAME,
        Heading::of(
            "Holder",
            "io.k8s.api.coordination.v1.LeaseSpec",
            "holderIdentity",
        ),
        Heading::AGE,
    ],
    cells: |lease, now| {
        vec![
            metadata::name(lease).into(),
            text(&lease["spec"], "holderIdentity").into(),
            age_cell(lease, now),
        ]
    },
    ..Rules::PLAIN
};

const SPEC: Path<'static> = Path::new("spec");

fn validate(lease: &Value, faults: &mut Vec<Fault>) {
    let spec = &lease["spec"];
    if let Some(seconds) = spec["leaseDurationSeconds"]
        .as_i64()
        .filter(|seconds| *seconds <= 0)
    {
        faults.push(Fault::invalid(
            SPEC.child("leaseDurationSeconds"),
            seconds,
            "must be greater than 0",
        ));
    }
    if let Some(count) = spec["leaseTransitions"].as_i64().filter(|count| *count < 0) {
        faults.push(Fault::invalid(
            SPEC.child("leaseTransitions"),
            count,
            NOT_NEGATIVE,
        ));
    }
    if !spec["preferredHolder"].is_null() && text(spec, "strategy").is_empty() {
        let text = "can only be specified when `strategy` is defined";
        faults.push(Fault::forbidden(SPEC.child("preferredHolder"), text));
    }
}

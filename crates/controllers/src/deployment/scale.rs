//! How many pods each ReplicaSet may have while a Deployment goes from one to another, or grows.

use std::cmp::Reverse;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::plan::{self, size};
use super::revision;

/// Available pods of a set.
pub(crate) fn available(set: &ReplicaSet) -> i32 {
    let status = set.status.as_ref();
    status
        .and_then(|status| status.available_replicas)
        .unwrap_or_default()
}

/// Pods that a set really has.
pub(crate) fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

/// A number, or a share of `total`; a share of pods is rounded up or down.
fn resolve(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent = text
                .strip_suffix('%')
                .and_then(|number| number.parse::<i64>().ok());
            let product = percent.unwrap_or_default() * i64::from(total);
            let share = match round_up {
                true => (product + 99).div_euclid(100),
                false => product.div_euclid(100),
            };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
        None => 0,
    }
}

/// How many pods there may be above the wanted number, and how many of that number may be missing.
/// If neither were allowed nothing could ever move, so one may be missing then.
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let Some(strategy) = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref())
    else {
        return (0, 0);
    };
    if strategy.type_.as_deref() == Some("Recreate") {
        return (0, 0);
    }
    let wanted = plan::wanted(deployment);
    let rolling = strategy.rolling_update.as_ref();
    let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref());
    let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    match (
        resolve(surge, wanted, true),
        resolve(unavailable, wanted, false),
    ) {
        (0, 0) => (0, 1),
        posts => posts,
    }
}

/// How many pods there may be above the wanted number.
pub(crate) fn max_surge(deployment: &Deployment) -> i32 {
    fenceposts(deployment).0
}

/// How many of the wanted pods may be missing.
pub(crate) fn max_unavailable(deployment: &Deployment) -> i32 {
    fenceposts(deployment).1.min(plan::wanted(deployment))
}

/// The size that the set of the new template may have now.
pub(crate) fn new_size(deployment: &Deployment, new: &ReplicaSet, old: &[ReplicaSet]) -> i32 {
    let wanted = plan::wanted(deployment);
    if plan::is_recreate(deployment) {
        return wanted;
    }
    let total = size(new) + old.iter().map(size).sum::<i32>();
    let most = wanted + max_surge(deployment);
    if total >= most {
        return size(new);
    }
    size(new) + (most - total).min(wanted - size(new))
}

/// The sizes to which the old sets may shrink now, by the index in `old`. Pods that do not work go
/// first, since nobody misses them; then as many others as stay above the minimum.
pub(crate) fn old_sizes(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    old: &[ReplicaSet],
) -> Vec<(usize, i32)> {
    let minimum = plan::wanted(deployment) - max_unavailable(deployment);
    let all_size = || old.iter().chain(new).map(size).sum::<i32>();
    let new_unavailable = new.map_or(0, |new| size(new) - available(new));
    let spare = all_size() - minimum - new_unavailable;
    if spare <= 0 || old.iter().all(|set| size(set) == 0) {
        return Vec::new();
    }
    let mut oldest_first: Vec<usize> = (0..old.len()).collect();
    oldest_first.sort_by(|one, other| plan::by_age(&old[*one], &old[*other]));
    let mut sizes: Vec<i32> = old.iter().map(size).collect();

    let mut done = 0;
    for &index in &oldest_first {
        let broken = (sizes[index] - available(&old[index])).max(0);
        let cut = broken.min(spare - done);
        sizes[index] -= cut;
        done += cut;
    }
    let available_now = old.iter().chain(new).map(available).sum::<i32>();
    let mut healthy_spare = (available_now - minimum).max(0);
    for &index in &oldest_first {
        let cut = sizes[index].min(healthy_spare);
        sizes[index] -= cut;
        healthy_spare -= cut;
    }
    let changed = (0..old.len()).filter(|index| sizes[*index] != size(&old[*index]));
    changed.map(|index| (index, sizes[index])).collect()
}

/// The sizes of several active sets when the Deployment grows or shrinks in the middle of a roll-out:
/// each takes a share as large as it is. By the index in `sets`.
pub(crate) fn shares(deployment: &Deployment, sets: &[ReplicaSet]) -> Vec<i32> {
    let wanted = plan::wanted(deployment);
    let most = if wanted > 0 {
        wanted + max_surge(deployment)
    } else {
        0
    };
    let mut sizes: Vec<i32> = sets.iter().map(size).collect();
    let change = most - sizes.iter().sum::<i32>();
    if change == 0 {
        return sizes;
    }
    // The largest gets what rounding leaves over; of equal ones the newest when growing, the oldest
    // when shrinking.
    let mut order: Vec<usize> = (0..sets.len()).collect();
    order.sort_by(|one, other| {
        let age = plan::by_age(&sets[*one], &sets[*other]);
        let age = if change > 0 { age.reverse() } else { age };
        Reverse(size(&sets[*one]))
            .cmp(&Reverse(size(&sets[*other])))
            .then(age)
    });
    let mut done = 0;
    for &index in &order {
        let share = share(deployment, &sets[index]);
        let left = change - done;
        let part = if change > 0 {
            share.min(left)
        } else {
            share.max(left)
        };
        let part = if sizes[index] == 0 { 0 } else { part };
        sizes[index] += part;
        done += part;
    }
    if let Some(&largest) = order.first() {
        sizes[largest] = (sizes[largest] + change - done).max(0);
    }
    sizes
}

fn share(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let wanted = plan::wanted(deployment);
    if wanted == 0 {
        return -size(set);
    }
    let actual = deployment
        .status
        .as_ref()
        .and_then(|status| status.replicas)
        .unwrap_or_default();
    let before = revision::max_replicas(set)
        .filter(|most| *most != 0)
        .unwrap_or(actual);
    if before == 0 {
        return 0;
    }
    let most = f64::from(wanted + max_surge(deployment));
    let grown = f64::from(size(set)) * most / f64::from(before);
    grown.round() as i32 - size(set)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn deployment(replicas: i32, surge: Value, unavailable: Value) -> Deployment {
        let deployment = json!({"spec": {
            "replicas": replicas, "selector": {}, "template": {},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
        }});
        serde_json::from_value(deployment).expect("is a deployment")
    }

    fn set(size: i32, available: i32) -> ReplicaSet {
        let set = json!({"spec": {"replicas": size, "selector": {}}, "status": {"replicas": size, "availableReplicas": available}});
        serde_json::from_value(set).expect("is a set")
    }

    #[test]
    fn surge_is_rounded_up_and_what_may_be_missing_down() {
        let check = |replicas, surge: Value, unavailable: Value, expected| {
            let deployment = deployment(replicas, surge, unavailable);
            assert_eq!(
                (max_surge(&deployment), max_unavailable(&deployment)),
                expected
            );
        };
        check(3, json!("25%"), json!("25%"), (1, 0));
        check(4, json!("25%"), json!("25%"), (1, 1));
        check(10, json!("25%"), json!("25%"), (3, 2));
        check(10, json!(0), json!("5%"), (0, 1));
        check(1, json!(0), json!(5), (0, 1));
        check(0, json!("25%"), json!("25%"), (0, 0));
        check(10, json!("100%"), json!(0), (10, 0));
    }

    #[test]
    fn the_new_set_grows_into_what_is_free() {
        let check = |replicas, surge: i32, new: i32, old: i32, expected| {
            let deployment = deployment(replicas, json!(surge), json!(0));
            assert_eq!(
                new_size(&deployment, &set(new, new), &[set(old, old)]),
                expected
            );
        };
        check(10, 3, 0, 10, 3);
        check(10, 3, 3, 10, 3);
        check(10, 3, 3, 8, 5);
        check(10, 3, 9, 0, 10);
        check(10, 0, 0, 0, 10);
    }

    #[test]
    fn old_sets_shrink_as_far_as_enough_is_available_and_broken_ones_first() {
        // replicas, unavailable, new (size, available), old ones (size, available), sizes after
        let check =
            |replicas, unavailable: i32, new: (i32, i32), old: &[(i32, i32)], expected: &[i32]| {
                let deployment = deployment(replicas, json!(10), json!(unavailable));
                let old: Vec<_> = old
                    .iter()
                    .map(|(size, available)| set(*size, *available))
                    .collect();
                let mut sizes: Vec<i32> = old.iter().map(size).collect();
                for (index, size) in old_sizes(&deployment, Some(&set(new.0, new.1)), &old) {
                    sizes[index] = size;
                }
                assert_eq!(sizes, expected);
            };
        check(10, 2, (0, 0), &[(10, 10)], &[8]);
        check(10, 0, (3, 0), &[(10, 10)], &[10]);
        check(10, 0, (3, 3), &[(10, 10)], &[7]);
        check(10, 2, (5, 3), &[(8, 8)], &[5]);
        // Eight of the old do not work: they are nobody's loss, as far as the minimum counts them.
        check(10, 2, (0, 0), &[(10, 2)], &[8]);
        check(10, 2, (4, 4), &[(8, 2), (2, 2)], &[2, 2]);
        check(10, 2, (10, 10), &[(3, 3), (2, 2)], &[0, 0]);
        check(10, 2, (10, 10), &[(0, 0)], &[0]);
    }

    #[test]
    fn a_change_of_size_in_the_middle_is_shared_by_size() {
        let check = |before: i32, after: i32, surge: i32, sets: &[i32], expected: &[i32]| {
            let deployment = deployment(after, json!(surge), json!(0));
            let mut sets: Vec<_> = sets.iter().map(|size| set(*size, *size)).collect();
            for set in &mut sets {
                revision::set_replicas(set, before, before + surge);
            }
            assert_eq!(shares(&deployment, &sets), expected);
        };
        check(10, 20, 0, &[5, 5], &[10, 10]);
        check(10, 15, 3, &[8, 5], &[11, 7]);
        check(10, 5, 0, &[8, 2], &[4, 1]);
        check(10, 0, 3, &[8, 5], &[0, 0]);
        check(10, 10, 3, &[8, 5], &[8, 5]);
    }
}

//! One file per theme; each case gets a namespace of its own.

mod config;
mod mistakes;
mod pods;
mod rollout;
mod services;
mod streams;
mod verbs;

use conformance::Kubectl;

/// A named test.
pub type Case = (&'static str, fn(&Kubectl) -> anyhow::Result<()>);

/// Every case.
pub fn all() -> Vec<Case> {
    [
        pods::CASES,
        rollout::CASES,
        services::CASES,
        config::CASES,
        verbs::CASES,
        streams::CASES,
        mistakes::CASES,
    ]
    .concat()
}

/// The registry that the tutorial of seed 003 uses.
const HELLO: &str = "registry.cn-hangzhou.aliyuncs.com/ceyewan/hellok8s";

/// The Deployment of the tutorial, with what a test needs changed.
fn deployment(tag: &str, replicas: u32, container: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: hello}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: hello}}}}\n  template:\n    metadata: {{labels: {{app: hello}}}}\n    \
         spec:\n      containers:\n      - {{name: hello, image: '{HELLO}:{tag}'{container}}}\n"
    )
}

/// A pod of busybox that sleeps, with more of its spec.
fn sleeper(name: &str, container: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: busybox, imagePullPolicy: IfNotPresent, \
         command: [sleep, '3600']{container}}}\n{spec}"
    )
}

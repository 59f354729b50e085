//! `GET /stats/summary`: what pods use, as metrics servers ask for it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use crate::api;
use crate::context::Context;
use crate::observed::Observed;
use crate::pod;

/// CPU and memory by container, and their sums by pod.
pub(super) async fn summary(State(context): State<Arc<Context>>) -> Response {
    let now = context.now().to_string();
    let mut pods = Vec::new();
    for found in context.pods.list() {
        let id = engine::SandboxId(pod::uid(&found).to_owned());
        let Ok(sandbox) = context.engine.sandbox(&id).await else {
            continue;
        };
        let mut containers = Vec::new();
        let (mut cpu_sum, mut memory_sum) = (0_u64, 0_u64);
        for (name, attempts) in Observed::new(sandbox).containers {
            let Some(attempt) = attempts.current.filter(|attempt| attempt.is_running()) else {
                continue;
            };
            // One that has ended meanwhile uses nothing.
            let Ok(stats) = context.engine.stats(&attempt.id).await else {
                continue;
            };
            let cpu = u64::try_from(stats.cpu.as_nanos()).unwrap_or(u64::MAX);
            cpu_sum = cpu_sum.saturating_add(cpu);
            memory_sum = memory_sum.saturating_add(stats.memory_working_set);
            containers.push(json!({
                "name": name,
                "startTime": attempt.created_at.to_string(),
                "cpu": {"time": now, "usageCoreNanoSeconds": cpu},
                "memory": {
                    "time": now,
                    "usageBytes": stats.memory,
                    "workingSetBytes": stats.memory_working_set,
                },
            }));
        }
        pods.push(json!({
            "podRef": {
                "name": pod::name(&found),
                "namespace": pod::namespace(&found),
                "uid": pod::uid(&found),
            },
            "containers": containers,
            "cpu": {"time": now, "usageCoreNanoSeconds": cpu_sum},
            "memory": {"time": now, "workingSetBytes": memory_sum},
        }));
    }
    api::json_answer(&json!({"node": {"nodeName": context.config.node_name}, "pods": pods}))
}

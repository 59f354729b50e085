//! Measures a cluster through its API, and a peer beside it in the same run.
//!
//! A fresh instance of wharf is started in a directory of its own, measured, and taken down. With
//! `--peer KUBECONFIG` any other cluster is measured in the same way right after. The table goes to
//! the terminal and to a file under `bench/results/`. Nothing here asserts a time: a figure means
//! something only beside another one from the same run.

mod api;
mod first;
mod load;
mod pods;
mod process;
mod report;
mod subject;
mod watchers;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::api::Api;
use crate::report::{Figure, Report};
use crate::subject::Wharf;

/// Measure wharf, and a peer beside it
#[derive(Debug, Parser)]
struct Arguments {
    /// The wharf program
    #[arg(long)]
    wharf: PathBuf,
    /// Directory with hellok8s-v1.tar
    #[arg(long)]
    images: PathBuf,
    /// Kubeconfig of another cluster to measure in the same way (it has the image already)
    #[arg(long, value_name = "KUBECONFIG")]
    peer: Option<PathBuf>,
    /// Names of the peer's processes, for memory and CPU
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "etcd,kube-apiserver,kube-controller,kube-scheduler,kubelet,kube-proxy,coredns,containerd,containerd-shim,kine"
    )]
    peer_processes: Vec<String>,
    /// Seconds over which the idle cluster's CPU is counted
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// Only figures whose name contains this
    #[arg(long, default_value = "")]
    only: String,
}

const IMAGE: &str = "registry.cn-hangzhou.aliyuncs.com/ceyewan/hellok8s:v1";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut report = Report::default();
    {
        let wharf = Wharf::start(&arguments.wharf, &arguments.images, &mut report).await?;
        let api = Api::of_kubeconfig(&wharf.kubeconfig())?;
        measure(
            &api,
            &arguments,
            &|| wharf.processes(),
            "wharf",
            &mut report,
        )
        .await?;
        report.add(
            "wharf",
            Figure::bytes("keeper, private memory", wharf.keeper_private_bytes()?),
        );
        report.add(
            "wharf",
            Figure::bytes("binary", std::fs::metadata(&arguments.wharf)?.len()),
        );
    }
    if let Some(peer) = &arguments.peer {
        let api = Api::of_kubeconfig(peer)?;
        let processes = || process::named(&arguments.peer_processes);
        measure(&api, &arguments, &processes, "peer", &mut report).await?;
    }
    report.print();
    let path = report.write()?;
    println!("written to {}", path.display());
    Ok(())
}

/// Everything that can be measured of any cluster, cheapest disturbance first.
async fn measure(
    api: &Api,
    arguments: &Arguments,
    processes: &dyn Fn() -> anyhow::Result<Vec<u32>>,
    subject: &'static str,
    report: &mut Report,
) -> anyhow::Result<()> {
    let wanted = |name: &str| name.contains(&arguments.only);
    if wanted("idle") {
        let used = process::idle(processes, Duration::from_secs(arguments.idle_seconds)).await?;
        report.add(
            subject,
            Figure::bytes("idle: memory, PSS of all processes", used.pss_bytes),
        );
        report.add(
            subject,
            Figure::percent("idle: CPU of one core", used.cpu_percent),
        );
    }
    api.prepare_namespace().await?;
    let measured = async {
        if wanted("pod") {
            report.add(subject, pods::one_at_a_time(api, 20).await?);
            report.add(subject, pods::at_once(api, 30).await?);
        }
        if wanted("create") || wanted("LIST") {
            for figure in load::creates(api, 64, 5000).await? {
                report.add(subject, figure);
            }
            report.add(subject, load::list(api, 5000).await?);
        }
        if wanted("watcher") {
            for figure in watchers::one_event(api, 200).await? {
                report.add(subject, figure);
            }
        }
        anyhow::Ok(())
    }
    .await;
    api.remove_namespace().await?;
    measured
}

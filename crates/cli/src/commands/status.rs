//! `wharf status`: what runs, and what is not ready and why. Exit code 1 unless all is ready.

use http::Method;

use super::{block_on, require_root};
use crate::args::Format;
use crate::control::{Control, Ended, NotReady, State, Status};
use crate::output::{self, say};
use crate::{Config, Refused};

pub(super) fn run(config: &Config, format: Format) -> anyhow::Result<()> {
    if config.instance.data_dir.exists() {
        require_root("ask the server for its state")?;
    }
    let status = block_on(async {
        match Control::connect(&config.instance.control_socket()).await? {
            Some(mut control) => match control.ask(Method::GET, "/status").await {
                Err(error) if error.is::<Ended>() => Ok(stopped(config)),
                answer => answer,
            },
            None => Ok(stopped(config)),
        }
    })?;
    match format {
        Format::Json => say!("{}", serde_json::to_string_pretty(&status)?),
        Format::Text => output::write(format_args!("{}", text(&status))),
    }
    if status.ready {
        Ok(())
    } else {
        Err(Refused.into())
    }
}

fn stopped(config: &Config) -> Status {
    Status {
        state: State::Stopped,
        ready: false,
        not_ready: vec![NotReady {
            name: "server".into(),
            reason: "it is not running; start it with `wharf up`".into(),
        }],
        pid: None,
        started_at: None,
        version: None,
        instance: config.instance.name.clone(),
        data_dir: config.instance.data_dir.clone(),
        addresses: None,
        node: None,
        running: None,
    }
}

fn text(status: &Status) -> String {
    let mut lines = vec![match (status.state, status.ready) {
        (State::Stopped, _) => format!("{} is stopped", status.instance),
        (State::Stopping, _) => format!("{} is stopping", status.instance),
        (_, true) => format!("{} is running and ready", status.instance),
        (_, false) => format!("{} is running and not ready", status.instance),
    }];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<10} {value}"));
    for missing in &status.not_ready {
        line("not ready", format!("{}: {}", missing.name, missing.reason));
    }
    if let Some(pid) = status.pid {
        let since = status.started_at.as_deref().unwrap_or("?");
        line("process", format!("{pid}, since {since}"));
    }
    if let Some(version) = &status.version {
        line(
            "version",
            format!("{} (Kubernetes API {})", version.wharf, version.kubernetes),
        );
    }
    line("data", status.data_dir.display().to_string());
    if let Some(addresses) = &status.addresses {
        line(
            "api",
            format!("{} (for pods {})", addresses.api, addresses.api_in_cluster),
        );
        line("dns", addresses.dns.clone());
        line("pods", addresses.pod_cidr.clone());
        line("services", addresses.service_cidr.clone());
    }
    if let Some(node) = &status.node {
        line("node", node.clone());
    }
    if let Some(running) = status.running {
        line(
            "running",
            format!("{} pods, {} containers", running.pods, running.containers),
        );
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ready_is_said_with_its_reason() {
        let config = Config::resolve(&crate::args::SettingsArguments {
            config: Some("/dev/null".into()),
            data_dir: Some("/nowhere/wharf".into()),
            node_name: Some("n".into()),
            ..Default::default()
        })
        .expect("resolved");
        let text = text(&stopped(&config));
        assert!(
            text.contains("is stopped\n")
                && text.contains("server: it is not running; start it with `wharf up`"),
            "{text}"
        );
    }
}

//! Everything that the documentation of kubectl promises for the kinds of the first light, on real
//! containers: one cluster, a namespace for each test.

mod cases;

use std::process::ExitCode;

use conformance::{Instance, Kubectl};
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        let trials = cases::all()
            .into_iter()
            .map(|(name, _)| Trial::test(name, || Ok(())))
            .collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    // Dropped at the end, which takes everything down.
    let (kubectl, _instance) = match cluster() {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("the cluster does not start: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = cases::all()
        .into_iter()
        .map(|(name, case)| {
            let kubectl = kubectl.clone();
            Trial::test(name, move || {
                let namespace = name.replace(['_', ':'], "-");
                let kubectl = kubectl
                    .in_new_namespace(&namespace)
                    .map_err(|error| format!("{error:#}"))?;
                case(&kubectl).map_err(|error| format!("{error:#}"))?;
                kubectl
                    .run(&["delete", "namespace", &namespace, "--wait=false"])
                    .map_err(|error| format!("{error:#}"))?;
                Ok(())
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A fresh instance with the images, or the cluster that the environment names.
fn cluster() -> anyhow::Result<(Kubectl, Option<Instance>)> {
    if let Some(kubeconfig) = std::env::var_os("KUBECONFIG_UNDER_TEST") {
        return Ok((Kubectl::of(kubeconfig.into()), None));
    }
    let instance = Instance::new(1)?;
    instance.wharf(&["up"])?.ok()?;
    instance.load(&[
        "hellok8s-v1",
        "hellok8s-v2",
        "hellok8s-v3",
        "hellok8s-liveness",
        "hellok8s-bad",
        "busybox",
    ])?;
    Ok((instance.kubectl(), Some(instance)))
}

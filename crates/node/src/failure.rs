//! What is said of a process that could not be started.
//!
//! The engine says only why. People and programs look for the words that are printed before it on
//! other nodes, such as `unable to start container process: exec: "x": executable file not found`.

/// Of a container's own process, for its status and its events.
pub(crate) fn of_start(cause: &str) -> String {
    let of_process = cause.starts_with("exec: ");
    let place = match of_process {
        true => "",
        false => "error during container init: ",
    };
    format!("OCI runtime create failed: unable to start container process: {place}{cause}")
}

/// Of a command in a container: a probe's, a hook's or a client's.
pub(crate) fn of_exec(error: &engine::Error) -> String {
    match error {
        engine::Error::Command(cause) => format!(
            "failed to exec in container: OCI runtime exec failed: exec failed: unable to start container process: {cause}"
        ),
        other => format!("failed to exec in container: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_that_people_look_for() {
        let start = |cause, expected| assert_eq!(of_start(cause), expected);
        start(
            "exec: \"nosuch\": executable file not found in $PATH",
            "OCI runtime create failed: unable to start container process: exec: \"nosuch\": executable file not found in $PATH",
        );
        start(
            "mkdir /etc/passwd: not a directory",
            "OCI runtime create failed: unable to start container process: error during container init: mkdir /etc/passwd: not a directory",
        );
        let exec = |error, expected| assert_eq!(of_exec(&error), expected);
        exec(
            engine::Error::Command("exec: \"x\": permission denied".to_owned()),
            "failed to exec in container: OCI runtime exec failed: exec failed: unable to start container process: exec: \"x\": permission denied",
        );
        exec(
            engine::Error::NotRunning(engine::ContainerId("c1".to_owned())),
            "failed to exec in container: container c1 is not running",
        );
    }
}

//! What is asked for and what the image says, as one container for the runtime (OCI image
//! specification, conversion to a runtime configuration).

use crate::api::{ContainerSpec, Error};

/// Docker's, for images that say nothing.
const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Program and arguments: a command drops the image's entrypoint and cmd, arguments only its cmd.
pub(crate) fn argv(spec: &ContainerSpec, image: &oci::ImageConfig) -> Result<Vec<String>, Error> {
    let command = spec.command.as_ref().filter(|words| !words.is_empty());
    let args = spec.args.as_ref().filter(|words| !words.is_empty());
    let argv: Vec<String> = match (command, args) {
        (Some(command), args) => command
            .iter()
            .chain(args.into_iter().flatten())
            .cloned()
            .collect(),
        (None, Some(args)) => image.entrypoint.iter().chain(args).cloned().collect(),
        (None, None) => image.entrypoint.iter().chain(&image.cmd).cloned().collect(),
    };
    if argv.is_empty() {
        return Err(Error::Invalid("no command specified".to_owned()));
    }
    Ok(argv)
}

/// The environment: defaults, then the image's, then what is asked for; each name once, where it
/// first stood.
pub(crate) fn env(
    spec: &ContainerSpec,
    image: &oci::ImageConfig,
    hostname: &str,
    home: &str,
) -> Vec<String> {
    let mut variables: Vec<String> = Vec::new();
    let mut set = |variable: String| {
        let name = |text: &str| text.split('=').next().unwrap_or_default().to_owned();
        match variables
            .iter_mut()
            .find(|known| name(known) == name(&variable))
        {
            Some(known) => *known = variable,
            None => variables.push(variable),
        }
    };
    set(PATH_DEFAULT.to_owned());
    set(format!("HOSTNAME={hostname}"));
    if spec.tty {
        set("TERM=xterm".to_owned());
    }
    set(format!("HOME={home}"));
    for variable in &image.env {
        set(variable.clone());
    }
    for (name, value) in &spec.env {
        set(format!("{name}={value}"));
    }
    // An empty HOME is none.
    if let Some(known) = variables.iter_mut().find(|known| *known == "HOME=") {
        *known = format!("HOME={home}");
    }
    variables
}

pub(crate) fn working_dir(spec: &ContainerSpec, image: &oci::ImageConfig) -> String {
    [spec.working_dir.as_deref(), Some(&*image.working_dir)]
        .into_iter()
        .flatten()
        .find(|directory| !directory.is_empty())
        .unwrap_or("/")
        .to_owned()
}

/// The signal that asks a container to stop.
pub(crate) fn stop_signal(spec: &ContainerSpec, image: &oci::ImageConfig) -> Result<i32, Error> {
    let wanted = [spec.stop_signal.as_deref(), Some(&*image.stop_signal)]
        .into_iter()
        .flatten()
        .find(|signal| !signal.is_empty())
        .unwrap_or("SIGTERM");
    parse_signal(wanted).ok_or_else(|| Error::Invalid(format!("invalid signal: {wanted}")))
}

/// Reads `SIGTERM`, `TERM`, `term`, `15`, `RTMIN+3`.
fn parse_signal(text: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 31] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
        ("SYS", 31),
    ];
    /// As programs see them; the C library keeps the first two real ones.
    const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |from: i32, offset: &str| {
        let offset = if offset.is_empty() {
            0
        } else {
            offset.parse::<i32>().ok()?
        };
        let number = from.checked_add(offset)?;
        REAL_TIME.contains(&number).then_some(number)
    };
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(*REAL_TIME.start(), offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(*REAL_TIME.end(), offset);
    }
    NAMES
        .into_iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_and_arguments_replace_what_kubernetes_documents() {
        let check = |command: Option<&str>, args: Option<&str>, expected: Result<&str, &str>| {
            let spec = ContainerSpec {
                command: command.map(words),
                args: args.map(words),
                ..ContainerSpec::default()
            };
            let image = oci::ImageConfig {
                entrypoint: words("/entry"),
                cmd: words("one two"),
                ..oci::ImageConfig::default()
            };
            let found = argv(&spec, &image).map_err(|error| error.to_string());
            assert_eq!(found, expected.map(words).map_err(str::to_owned));
        };
        check(None, None, Ok("/entry one two"));
        check(Some("/own"), None, Ok("/own"));
        check(None, Some("x"), Ok("/entry x"));
        check(Some("/own"), Some("x y"), Ok("/own x y"));
        check(Some(""), Some(""), Ok("/entry one two"));
        let nothing = argv(&ContainerSpec::default(), &oci::ImageConfig::default());
        assert_eq!(
            nothing.map_err(|error| error.to_string()),
            Err("no command specified".to_owned())
        );
    }

    #[test]
    fn environments_are_laid_over_one_another() {
        let check = |image: &[&str], own: &[(&str, &str)], expected: &[&str]| {
            let spec = ContainerSpec {
                env: own
                    .iter()
                    .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                    .collect(),
                ..ContainerSpec::default()
            };
            let image = oci::ImageConfig {
                env: image.iter().map(|&one| one.to_owned()).collect(),
                ..oci::ImageConfig::default()
            };
            assert_eq!(env(&spec, &image, "host", "/home/x"), expected);
        };
        check(&[], &[], &[PATH_DEFAULT, "HOSTNAME=host", "HOME=/home/x"]);
        check(
            &["PATH=/bin", "A=1", "B=2"],
            &[
                ("B", "3"),
                ("C", "a=b"),
                ("HOME", ""),
                ("HOSTNAME", "other"),
            ],
            &[
                "PATH=/bin",
                "HOSTNAME=other",
                "HOME=/home/x",
                "A=1",
                "B=3",
                "C=a=b",
            ],
        );
    }

    #[test]
    fn signals_have_names_and_numbers() {
        let check = |text: &str, expected: Option<i32>| {
            assert_eq!(parse_signal(text), expected, "{text}");
        };
        check("SIGTERM", Some(15));
        check("quit", Some(3));
        check("9", Some(9));
        check("SIGRTMIN+3", Some(37));
        check("RTMAX-1", Some(63));
        check("RTMIN", Some(34));
        check("RTMIN+40", None);
        check("0", None);
        check("65", None);
        check("SIGNOPE", None);
    }
}

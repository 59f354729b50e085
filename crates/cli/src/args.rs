//! What was typed.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{AddressRange, ListenAddress};

/// A container platform in one program: a Kubernetes cluster in a second.
#[derive(Debug, Parser)]
#[command(
    name = "wharf",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the cluster, and return when it is ready
    Up(SettingsArguments),
    /// Stop the cluster and its containers; what is stored stays
    Down(DownArguments),
    /// Say what runs, and what is not ready and why
    Status(StatusArguments),
    /// Stop the cluster and delete everything it stored
    Reset(ResetArguments),
    /// Be the server, in the foreground (for service managers)
    Server(ServerArguments),
    /// Print versions
    Version(VersionArguments),
    /// Look for what this machine lacks, and say what to do about it
    Doctor(DoctorArguments),
    /// Work with the images on this machine
    Image(ImageArguments),
    /// Print a completion script for a shell
    Completion {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

/// Settings that the TOML file can give, too, under the same names.
#[derive(Args, Clone, Debug, Default)]
pub struct SettingsArguments {
    /// Settings file [default: /etc/wharf/config.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE", env = "WHARF_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where everything is kept [default: /var/lib/wharf]
    #[arg(long, global = true, value_name = "DIR", env = "WHARF_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the Kubernetes API listens [default: 127.0.0.1:6443]
    #[arg(long, global = true, value_name = "ADDR:PORT")]
    pub api_listen: Option<ListenAddress>,
    /// Into which file the cluster's context is written [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Addresses of pods [default: 10.244.0.0/16]
    #[arg(long, global = true, value_name = "CIDR")]
    pub pod_cidr: Option<AddressRange>,
    /// Addresses of Services [default: 10.96.0.0/16]
    #[arg(long, global = true, value_name = "CIDR")]
    pub service_cidr: Option<AddressRange>,
    /// Name of this machine's node [default: the host name]
    #[arg(long, global = true, value_name = "NAME")]
    pub node_name: Option<String>,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Of `wharf status`.
#[derive(Args, Debug)]
pub struct StatusArguments {
    /// Which instance.
    #[command(flatten)]
    pub settings: SettingsArguments,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// Of `wharf version`.
#[derive(Args, Debug)]
pub struct VersionArguments {
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// Of `wharf down`.
#[derive(Args, Debug)]
pub struct DownArguments {
    /// Which instance.
    #[command(flatten)]
    pub settings: SettingsArguments,
    /// Seconds that a pod has at most to end by itself; a shorter grace period of its own counts,
    /// and 0 kills everything at once
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    pub timeout: u16,
}

/// Of `wharf reset`.
#[derive(Args, Debug)]
pub struct ResetArguments {
    /// Which instance.
    #[command(flatten)]
    pub settings: SettingsArguments,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

/// Of `wharf server`.
#[derive(Args, Debug)]
pub struct ServerArguments {
    /// Which instance.
    #[command(flatten)]
    pub settings: SettingsArguments,
    /// Tell progress as lines of JSON on standard output, and detach from the terminal
    #[arg(long, hide = true)]
    pub progress: bool,
}

/// Of `wharf doctor`.
#[derive(Args, Debug)]
pub struct DoctorArguments {
    /// Which instance.
    #[command(flatten)]
    pub settings: SettingsArguments,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Format,
}

/// Of `wharf image`.
#[derive(Args, Debug)]
pub struct ImageArguments {
    /// Which instance.
    #[command(flatten)]
    pub settings: SettingsArguments,
    /// What to do.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// Of `wharf image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Load images from archives made by `docker save` or in the OCI layout (plain, gzip, zstd)
    Load {
        /// Archives; `-` for standard input
        #[arg(required = true, value_name = "FILE")]
        archives: Vec<PathBuf>,
        /// Name of the image, instead of those in the archive
        #[arg(long, value_name = "IMAGE")]
        tag: Option<String>,
    },
    /// Make an image of one layer from an archive of a root file system
    Import {
        /// Archive; `-` for standard input
        archive: PathBuf,
        /// Name of the image
        reference: String,
    },
    /// List images
    Ls {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
        /// Print ids only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove images by name or id
    Rm {
        /// Names or ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        /// Also when containers use them
        #[arg(short, long)]
        force: bool,
    },
}

/// Parses the command line of this process.
pub fn parse() -> Result<Arguments, clap::Error> {
    Arguments::try_parse()
}

/// The completion script for a shell, on standard output.
pub fn print_completion(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "wharf", &mut script);
    // A closed pipe is the reader's choice (`wharf completion bash | head`).
    let _ = std::io::Write::write_all(&mut std::io::stdout(), &script);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}

//! Children of a keeper: forking, what they report, and how they become the command.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use crate::descriptors;
use crate::protocol::{Refusal, RefusalKind};

/// The longest report; longer messages are cut.
const REPORT_MAX: usize = 32 << 10;

/// What a child tells the keeper on its way. The end of the channel means that the command has been
/// executed (or, after a failure, that the child is gone): every copy of it closes on exec.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The process that will become the command, as seen on the machine.
    Process { pid: i32 },
    /// The terminal's side for the keeper comes along.
    Terminal,
    /// What libcontainer has to say about a failure that is going to be told.
    Cause(String),
    /// It cannot be done.
    Failed(Refusal),
}

/// The child's end.
#[derive(Debug)]
pub(super) struct Reporter(OwnedFd);

impl Reporter {
    /// Tells; a keeper that no longer listens has nobody to be told.
    pub(super) fn tell(&self, mut report: Report, attached: &[OwnedFd]) {
        if let Report::Failed(Refusal { message, .. }) | Report::Cause(message) = &mut report
            && message.len() > REPORT_MAX / 4
        {
            message.truncate(message.floor_char_boundary(REPORT_MAX / 4));
        }
        if let Ok(text) = serde_json::to_vec(&report) {
            let _ = descriptors::send(&self.0, &text, attached);
        }
    }
}

impl Reporter {
    /// Another one to the same keeper.
    pub(super) fn copy(&self) -> io::Result<Reporter> {
        self.0.try_clone().map(Reporter)
    }

    /// Closes every descriptor but 0 and this one.
    pub(super) fn close_all_but_standard_input(&self) {
        let own = u32::try_from(self.0.as_raw_fd()).unwrap_or(u32::MAX);
        for (first, last) in [(1, own - 1), (own + 1, u32::MAX)] {
            #[expect(unsafe_code, reason = "close_range(2) has no safe wrapper")]
            // SAFETY: the caller is a forked child that uses no other descriptor from here on.
            unsafe {
                libc::syscall(libc::SYS_close_range, first, last, 0);
            }
        }
    }
}

/// The keeper's end: never blocks.
#[derive(Debug)]
pub(super) struct Reports(pub(super) OwnedFd);

/// One look at a report channel.
pub(super) enum Heard {
    Report(Report, Option<OwnedFd>),
    Nothing,
    End,
}

impl Reports {
    pub(super) fn hear(&self) -> Heard {
        let mut buffer = vec![0; REPORT_MAX];
        let mut attached = VecDeque::new();
        match descriptors::receive(&self.0, &mut buffer, &mut attached) {
            Ok(0) => Heard::End,
            Ok(length) => match serde_json::from_slice(&buffer[..length]) {
                Ok(report) => Heard::Report(report, attached.pop_front()),
                Err(_) => Heard::End,
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Heard::Nothing,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Heard::Nothing,
            Err(_) => Heard::End,
        }
    }
}

/// A channel from a child: message boundaries are kept, as several processes write to it.
pub(super) fn report_channel() -> io::Result<(Reports, Reporter)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((Reports(ours), Reporter(theirs)))
}

/// Which side of a fork the caller is on.
pub(super) enum Side {
    Child,
    Parent(i32),
}

/// Forks. In the child every Rust facility may be used, as a keeper has one thread only.
pub(super) fn fork() -> io::Result<Side> {
    #[expect(unsafe_code, reason = "fork(2) has no safe wrapper")]
    // SAFETY: a keeper is single-threaded (nothing in it starts a thread), so no lock can be held
    // by a thread that does not exist in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(pid)),
    }
}

/// Ends a forked child without running the keeper's destructors or flushing its buffers.
pub(super) fn leave(code: i32) -> ! {
    #[expect(unsafe_code, reason = "_exit(2) has no safe wrapper")]
    // SAFETY: it does not return and touches nothing.
    unsafe {
        libc::_exit(code)
    }
}

/// Gives the child the signal set-up that a program may expect: nothing blocked, nothing ignored.
/// The keeper blocks SIGCHLD, and Rust ignores SIGPIPE, which would be inherited through exec.
pub(super) fn reset_signals() {
    #[expect(unsafe_code, reason = "signal set-up has no safe wrapper")]
    // SAFETY: the set is initialised before use; the kernel's sigaction structure of all zeroes (32
    // bytes, with a set of 8) is the default disposition, and nothing waits for the old ones.
    unsafe {
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
        // By the system call: the C library keeps two of them to itself.
        let default = [0u8; 32];
        for signal in 1..=64 {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u8>(),
                8,
            );
        }
    }
}

/// Finds the program as a shell would, with the refusals that users know from other runtimes.
pub(super) fn find_program(name: &str, env: &[String]) -> Result<CString, Refusal> {
    let refuse =
        |reason: &str| Refusal::new(RefusalKind::Command, format!("exec: {name:?}: {reason}"));
    let as_c_string = |path: &Path| {
        CString::new(path.as_os_str().as_bytes())
            .map_err(|_| refuse("the name contains a zero byte"))
    };
    if name.contains('/') {
        let path = Path::new(name);
        return match fs::metadata(path) {
            Err(error) => Err(refuse(&format!("stat {name}: {}", reason(&error)))),
            Ok(found) if is_program(&found) => as_c_string(path),
            Ok(_) => Err(refuse("permission denied")),
        };
    }
    let search = env
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="))
        .unwrap_or_default();
    for directory in search.split(':').filter(|_| !name.is_empty()) {
        // An empty part of PATH is the working directory (environ(7)).
        let directory = if directory.is_empty() { "." } else { directory };
        let path = Path::new(directory).join(name);
        if fs::metadata(&path).is_ok_and(|found| is_program(&found)) {
            return as_c_string(&path);
        }
    }
    Err(refuse("executable file not found in $PATH"))
}

fn is_program(metadata: &fs::Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
}

/// The reason of an error in the words of the C library, lower case, as other runtimes print it.
pub(super) fn reason(error: &io::Error) -> String {
    let text = match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    };
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => text,
    }
}

/// Becomes the command. If the kernel refuses it (a file that is no program), the command has
/// "started" for everybody else, so it says so on its standard error and ends with 1, as under runc.
pub(super) fn become_command(program: &CString, argv: &[String], env: &[String]) -> ! {
    let zero_free = |strings: &[String]| -> Vec<CString> {
        strings
            .iter()
            .filter_map(|string| CString::new(string.as_str()).ok())
            .collect()
    };
    let error = match nix::unistd::execve(program, &zero_free(argv), &zero_free(env)) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let shown = OsStr::from_bytes(program.as_bytes()).display();
    let text = format!("exec {shown}: {}\n", reason(&io::Error::from(error)));
    let _ = rustix::io::write(rustix::stdio::stderr().as_fd(), text.as_bytes());
    leave(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, env: &[&str], expected: Result<&str, &str>) {
        let env: Vec<String> = env.iter().map(|&variable| variable.to_owned()).collect();
        let found = find_program(name, &env);
        let found = found
            .as_ref()
            .map(|path| path.to_str().expect("ASCII"))
            .map_err(|refusal| refusal.message.as_str());
        assert_eq!(found, expected);
    }

    #[test]
    fn programs_are_found_or_refused_in_the_usual_words() {
        check("sh", &["PATH=/nowhere:/bin"], Ok("/bin/sh"));
        check("/bin/sh", &[], Ok("/bin/sh"));
        let not_found = Err("exec: \"foo\": executable file not found in $PATH");
        check("foo", &["PATH=/bin"], not_found);
        check("foo", &[], not_found);
        check(
            "",
            &["PATH=/"],
            Err("exec: \"\": executable file not found in $PATH"),
        );
        check(
            "/no/such",
            &[],
            Err("exec: \"/no/such\": stat /no/such: no such file or directory"),
        );
        check(
            "/etc/passwd",
            &[],
            Err("exec: \"/etc/passwd\": permission denied"),
        );
        check("/etc", &[], Err("exec: \"/etc\": permission denied"));
        check(
            "etc",
            &["PATH=/"],
            Err("exec: \"etc\": executable file not found in $PATH"),
        );
    }
}

//! Telling the service manager how far we are (sd_notify(3)): `systemctl start` returns when the
//! cluster is ready.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The start is complete.
pub(crate) const READY: &str = "READY=1";
/// The end has begun.
pub(crate) const STOPPING: &str = "STOPPING=1";

/// Tells an assignment to the service manager, if there is one.
pub(crate) fn tell(assignment: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, assignment) {
        tracing::warn!("tell the service manager at {}: {error}", socket.display());
    }
}

/// Tells what is being done, for `systemctl status`.
pub(crate) fn tell_status(message: &str) {
    // A second line would be an assignment of its own.
    tell(&format!("STATUS={}", message.replace('\n', " ")));
}

/// One datagram to a path, or, after an `@`, to an abstract name.
fn send(socket: &OsStr, assignment: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => {
            let message = "NOTIFY_SOCKET is neither a path nor an abstract name";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
    };
    UnixDatagram::unbound()?.send_to_addr(assignment.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(socket: &OsStr, address: &SocketAddr) {
        let manager = UnixDatagram::bind_addr(address).expect("bound");
        send(socket, READY).expect("sent");
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).expect("received");
        assert_eq!(&buffer[..length], b"READY=1");
    }

    #[test]
    fn both_kinds_of_names_are_understood() {
        let name = format!("wharf-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let address = SocketAddr::from_pathname(&path).expect("an address");
        check(path.as_os_str(), &address);
        std::fs::remove_file(&path).expect("removed");
        send(path.as_os_str(), READY).expect_err("nobody is there");
        let address = SocketAddr::from_abstract_name(&name).expect("an address");
        check(OsStr::new(&format!("@{name}")), &address);
        send(OsStr::new("vsock:2:1"), READY).expect_err("not understood");
    }
}

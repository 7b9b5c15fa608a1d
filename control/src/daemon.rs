//! From the command line to a running process: interface and socket are made in the foreground, where errors
//! can be shown, then handed to a detached copy of the program.
//!
//! `wireguard-go` hands them over as descriptors 3 and 4, and its parent leaves at once. Here they travel over a
//! socket that is the child's standard input (`SCM_RIGHTS`, which needs no `unsafe`), and over the same socket
//! the child says that it carries packets, or why not.

use crate::cli::RunArgs;
use crate::run::{self, Interface};
use crate::uapi::socket;
use crate::{Error, logging};
use dataplane::Tun;
use dataplane::io::tun::DEFAULT_MTU;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Number of a TUN descriptor to adopt, as for `wireguard-go`.
const TUN_FD: &str = "WG_TUN_FD";
/// Number of a listening UAPI socket to adopt, as for `wireguard-go`.
const UAPI_FD: &str = "WG_UAPI_FD";
/// "1": stay in the foreground, as for `wireguard-go`.
const FOREGROUND: &str = "WG_PROCESS_FOREGROUND";
/// Set for the detached copy: descriptor 0 is the socket to its parent.
const READY_FD: &str = "IPOP_FAST_READY_FD";
/// How long the parent waits for the child. Starting takes milliseconds.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Longest error text taken from the child.
const MAX_REPORT: u64 = 4096;
const STARTED: &[u8] = b"started";

/// Serves an interface.
///
/// # Errors
/// What to tell the user.
pub fn main(args: &RunArgs) -> Result<ExitCode, Error> {
    let asked = logging::asked_level(args.engine.log_level);
    logging::start(asked);
    if std::env::var_os(READY_FD).is_some() {
        return Ok(child(args));
    }
    let interface = open(args)?;
    let foreground = args.foreground || std::env::var_os(FOREGROUND).is_some_and(|v| v == "1");
    if foreground {
        run::run(interface, args.config(), || {})?;
        return Ok(ExitCode::SUCCESS);
    }
    // As wireguard-go: the daemon keeps the terminal only if somebody asked for its log.
    let keeps_stderr = asked.is_some_and(|l| l.0 != tracing::level_filters::LevelFilter::OFF);
    detach(&interface, keeps_stderr)?;
    Ok(ExitCode::SUCCESS)
}

/// Creates or adopts the interface and its socket.
fn open(args: &RunArgs) -> Result<Interface, Error> {
    let name = args.interface.as_deref().unwrap_or_default();
    let tun = match inherited(TUN_FD)? {
        // As wireguard-go does with a device that it is handed.
        Some(fd) => Tun::from_fd(fd, args.queues()).and_then(|tun| tun.set_mtu(DEFAULT_MTU).map(|()| tun)),
        None => Tun::create(name, args.queues(), !args.engine.no_tun_offload),
    };
    let tun = tun.map_err(|source| tun_error(name, source))?;
    let listener = match inherited(UAPI_FD)? {
        Some(fd) => UnixListener::from(fd),
        None => socket::listen(Path::new(socket::DIRECTORY), tun.name())?,
    };
    Ok(Interface { tun, listener })
}

/// Why there is no interface, and what to do about it.
pub(crate) fn tun_error(name: &str, source: io::Error) -> Error {
    let hint = tun_hint(name, source.raw_os_error().unwrap_or(0));
    Error::Tun { name: name.to_owned(), source, hint }
}

/// What to do about the usual reasons for which a TUN device is refused.
fn tun_hint(name: &str, errno: i32) -> String {
    let (eperm, eacces, ebusy, eexist, einval) = (1, 13, 16, 17, 22);
    if !Path::new("/dev/net/tun").exists() {
        "/dev/net/tun is missing: load the module (modprobe tun); for a container, add --device /dev/net/tun".to_owned()
    } else if errno == eperm || errno == eacces {
        "the right to change the network (CAP_NET_ADMIN) is missing: run it as root, or for a container add \
         --cap-add NET_ADMIN"
            .to_owned()
    } else if [ebusy, eexist, einval].contains(&errno) && crate::uapi::server::scope_of(name).is_some() {
        format!("an interface {name} exists already: remove it (ip link delete {name}) or take another name")
    } else {
        String::new()
    }
}

/// The descriptor that environment variable `variable` names, if it is set.
fn inherited(variable: &'static str) -> Result<Option<OwnedFd>, Error> {
    let Some(value) = std::env::var_os(variable).filter(|v| !v.is_empty()) else {
        return Ok(None);
    };
    adopt(&value).map(Some).map_err(|e| {
        if e.kind() == io::ErrorKind::PermissionDenied {
            Error::io(format!("take over the descriptor of {variable} (pidfd_getfd, as a seccomp filter may)"), e)
        } else {
            Error::FdVariable { variable, value: value.to_string_lossy().into_owned() }
        }
    })
}

/// A duplicate of a descriptor of this process, by its number. The kernel makes it, so nothing has to be
/// believed about who owns the number; the original stays open until the process ends.
fn adopt(number: &OsString) -> io::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let number = number.to_str().and_then(|s| s.parse().ok()).filter(|n| *n >= 0);
    let number = number.ok_or(io::ErrorKind::InvalidInput)?;
    let myself = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(myself, number, PidfdGetfdFlags::empty())?)
}

/// Starts a detached copy of this program, hands `interface` over and waits until it carries packets.
fn detach(interface: &Interface, keeps_stderr: bool) -> Result<(), Error> {
    let failed = |e: io::Error| Error::io("start the background process", e);
    let (mut here, there) = UnixStream::pair().map_err(failed)?;
    let output = || if keeps_stderr { Stdio::inherit() } else { Stdio::null() };
    // The command holds `there`: it is dropped before waiting, so that the child's end is the only one.
    let mut child = Command::new(std::env::current_exe().map_err(failed)?)
        .args(std::env::args_os().skip(1))
        .env(FOREGROUND, "1")
        .env(READY_FD, "0")
        .env_remove(TUN_FD)
        .env_remove(UAPI_FD)
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(there)))
        .stdout(output())
        .stderr(output())
        .spawn()
        .map_err(failed)?;
    let report = send_fds(&here, interface).and_then(|()| {
        here.set_read_timeout(Some(START_LIMIT))?;
        let mut report = Vec::new();
        Read::by_ref(&mut here).take(MAX_REPORT).read_to_end(&mut report)?;
        Ok(report)
    });
    let problem = match report {
        Ok(report) if report == STARTED => return Ok(()),
        Ok(report) if report.is_empty() => match child.wait() {
            Ok(status) => format!("the background process ended while starting ({status})"),
            Err(e) => format!("the background process ended while starting: {e}"),
        },
        Ok(report) => String::from_utf8_lossy(&report).into_owned(),
        Err(e) => format!("the background process did not start within {} s: {e}", START_LIMIT.as_secs()),
    };
    // Already gone in most cases; never leave half a daemon behind.
    let _ = child.kill();
    let _ = child.wait();
    remove_socket(interface);
    Err(Error::Background(problem))
}

/// The file would be taken for stale by the next start, but `wg show` would stumble over it.
fn remove_socket(interface: &Interface) {
    drop(socket::SocketFile::new(run::socket_path(interface)));
}

fn send_fds(to: &UnixStream, interface: &Interface) -> io::Result<()> {
    let fds = [interface.tun.fd(), interface.listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    sendmsg(to, &[IoSlice::new(b"f")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// TUN and listening socket from the parent.
fn receive_fds(from: &UnixStream) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = control.drain().flat_map(|m| match m {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => Vec::new(),
    });
    fds.next().zip(fds.next()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The detached copy.
fn child(args: &RunArgs) -> ExitCode {
    let parent = match leave_terminal() {
        Ok(parent) => parent,
        Err(e) => {
            eprintln!("ipop-fast: {READY_FD} is set, but standard input is no socket to a parent process: {e}");
            return ExitCode::FAILURE;
        }
    };
    let started = || {
        // A parent that has left meanwhile has ended this process, or will not mind.
        let _ = (&parent).write_all(STARTED);
        let _ = parent.shutdown(std::net::Shutdown::Both);
    };
    let done = receive_fds(&parent).map_err(|e| Error::io("take over the interface", e)).and_then(|(tun, listener)| {
        let name = args.interface.clone().unwrap_or_default();
        let tun =
            Tun::from_fd(tun, args.queues()).map_err(|source| Error::Tun { name, source, hint: String::new() })?;
        run::run(Interface { tun, listener: UnixListener::from(listener) }, args.config(), started)
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e}");
            // Nobody listens any more if it fails later than at the start.
            let _ = (&parent).write_all(e.to_string().as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// A session of its own, so that closing the terminal does not end it; standard input becomes /dev/null.
fn leave_terminal() -> io::Result<UnixStream> {
    let parent = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    parent.peer_addr()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    // Refused only to the leader of a process group, which a started child is not.
    let _ = rustix::process::setsid();
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_adopted_by_its_number() {
        use std::os::fd::AsRawFd;
        let (a, mut b) = UnixStream::pair().expect("pair");
        let copy = adopt(&a.as_raw_fd().to_string().into());
        let copy = match copy {
            // Container runtimes without CAP_SYS_PTRACE.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return,
            copy => copy.expect("adopted"),
        };
        drop(a);
        UnixStream::from(copy).write_all(b"x").expect("write");
        let mut got = String::new();
        b.read_to_string(&mut got).expect("read");
        assert_eq!(got, "x");
        for bad in ["", "x", "-1", "99999"] {
            assert!(adopt(&bad.into()).is_err(), "{bad}");
        }
    }
}

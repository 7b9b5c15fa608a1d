//! The guard at an interface: attached by a link, which the kernel takes away when the process ends, however it does.

use super::BpfError;
use crate::config::{Xdp, XdpMode};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{self, Program, ProgramError};
use std::fmt;

/// The guard, attached as long as this is there.
pub(super) struct Guard {
    /// Held, not looked at.
    _link: FdLink,
    text: String,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Guard {
    /// Where it is, in a few words.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Attaches a loaded guard.
    pub(super) fn attach(ebpf: &mut Ebpf, to: &Xdp) -> Result<Self, BpfError> {
        let program = program(ebpf)?;
        let mode = match to.mode {
            XdpMode::Auto => programs::XdpMode::Default,
            XdpMode::Generic => programs::XdpMode::Skb,
            XdpMode::Native => programs::XdpMode::Driver,
        };
        let id = program.attach(&to.interface, mode).map_err(|e| refused(&e))?;
        let link = program.take_link(id).map_err(|e| refused(&e))?;
        // Kernels before 5.9 know no such links; what is attached otherwise would outlive us. Dropped here, it is taken away.
        let link = FdLink::try_from(link).map_err(|e| BpfError::new("the guard cannot be attached by a link")(&e))?;
        let mode = match to.mode {
            XdpMode::Auto => "",
            XdpMode::Generic => " (generic)",
            XdpMode::Native => " (native)",
        };
        Ok(Self { _link: link, text: format!("guard at {}{mode}", to.interface) })
    }
}

/// Loads it.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), BpfError> {
    program(ebpf)?.load().map_err(|e| BpfError::new("the kernel refuses the guard")(&e))
}

fn program(ebpf: &mut Ebpf) -> Result<&mut programs::Xdp, BpfError> {
    match ebpf.program_mut("guard") {
        Some(Program::Xdp(p)) => Ok(p),
        _ => Err(BpfError::missing("guard")),
    }
}

fn refused(error: &ProgramError) -> BpfError {
    let what = "the guard cannot be attached";
    let errno = super::errno_of(error);
    match (error, errno) {
        (ProgramError::UnknownInterface { name }, _) => {
            BpfError { what, why: format!("there is no interface {name} here") }
        }
        (_, Some(libc::EBUSY | libc::EEXIST)) => {
            BpfError { what, why: "another program is attached there (`bpftool net` shows it), and stays".into() }
        }
        (_, Some(libc::EOPNOTSUPP)) => {
            BpfError { what, why: "the interface's driver runs no such programs: take IFACE:generic".into() }
        }
        _ => BpfError::new(what)(error),
    }
}

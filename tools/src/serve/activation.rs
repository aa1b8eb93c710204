//! Sockets that a service manager opened for this process and hands over, as systemd does: from descriptor 3 on, as many as
//! LISTEN_FDS says, if LISTEN_PID is this process.
//!
//! Not here: reading the variables ([`crate::environment`]), what the sockets are. What holds: whoever sets these variables
//! promises that the descriptors are open and nobody else's; each is taken over once and is not passed on to children.
//!
//! Unsafe: a descriptor that is known by its number only has to be claimed without proof. It is, here alone: the caller calls
//! once, the variables were written for this process, and a descriptor that is not open is refused first.
#![allow(unsafe_code)]

use crate::environment;
use crate::exit::{Result, wrong_use};
use coffer_repo::Error;
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The first one.
const START: RawFd = 3;

/// Takes over what was handed to this process; to be called once.
pub(super) fn sockets() -> Result<Vec<OwnedFd>> {
    let Some(count) = environment::handed_sockets() else {
        return Err(wrong_use(
            "no socket was handed over: LISTEN_PID and LISTEN_FDS are not set for this process; '--listen systemd' is for a \
             service that a .socket unit starts",
        ));
    };
    (START..).take(count.into()).map(take).collect()
}

fn take(number: RawFd) -> Result<OwnedFd> {
    let failed =
        |e: rustix::io::Errno| Error::invalid(format!("LISTEN_FDS promises descriptor {number}")).with_source(e);
    // SAFETY: borrowed only to ask whether it is open; a number that is not gives EBADF and nothing else.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(borrowed).map_err(failed)?;
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC).map_err(failed)?;
    // SAFETY: it is open, and LISTEN_PID and LISTEN_FDS gave it to this process, which takes it once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

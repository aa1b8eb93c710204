//! SANITIZE: all of a disk overwritten, erased, or its key thrown away, on a thread of its own.
//!
//! ```text
//!   idle -> running -> idle          every step is told as progress
//!              \-> failed            until it is begun again or the failure is left (EXIT FAILURE MODE)
//! ```
//! Not here: who may. What holds: once begun it goes on, whatever becomes of the command, its session and the unit's resets, until it
//! is done, fails or the LUN is taken away; nobody reads or writes meanwhile; it is paced by the export's limits as any writing is. What
//! lies below a fork is not its own and stays; what the fork had becomes zeroes or a pattern. It is not remembered over a restart.

use super::field::{be16, byte, has};
use super::lun::Lun;
use super::medium::{LOOK, STEP};
use super::sense::{Code, Key, Outcome, Sense, Specifics};
use coffer_gateway::{Durability, Zeroing};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes that are erased in one step.
const ERASE_STEP: u64 = 64 << 20;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Erase,
    /// The key of what is there is thrown away, and zeroes are under a new one.
    ThrowKeyAway,
    /// Every block is the pattern, so many times; inverted each time but the last.
    Overwrite {
        block: Vec<u8>,
        passes: u8,
        is_inverted: bool,
    },
}

/// How.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    /// The command does not wait for the end.
    pub(super) is_immediate: bool,
    /// A failure may be left by EXIT FAILURE MODE.
    pub(super) may_exit: bool,
}

impl Work {
    /// The work of an OVERWRITE's parameters.
    pub(super) fn overwrite(list: &[u8], block_size: u32) -> Result<Self, Sense> {
        let size = usize::try_from(block_size).unwrap_or(usize::MAX);
        let (len, passes) = (usize::from(be16(list, 2)), byte(list, 0) & 0x1f);
        if passes == 0 {
            return Err(Sense::parameter(0, Some(4)));
        }
        let pattern = list.get(4..).filter(|pattern| (1..=size).contains(&len) && pattern.len() == len);
        let pattern = pattern.ok_or(Sense::parameter(2, None))?;
        let block = pattern.iter().copied().cycle().take(size).collect();
        Ok(Work::Overwrite { block, passes, is_inverted: has(list, 0, 0x80) })
    }
}

/// Where it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    /// So many 65,536ths are done.
    Running(u16),
    Failed {
        may_exit: bool,
    },
}

/// The sanitizing of one LUN.
#[derive(Debug, Default)]
pub(super) struct Sanitizing {
    /// Looked at by every command: whether `state` is worth a look.
    is_busy: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    is_given_up: AtomicBool,
}

impl Sanitizing {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.is_busy.store(state != State::Idle, Ordering::Release);
        self.changed.notify_all();
    }

    /// Why the medium cannot be used, if it cannot.
    pub(super) fn sense(&self) -> Option<Sense> {
        if !self.is_busy.load(Ordering::Acquire) {
            return None;
        }
        match *self.state() {
            State::Idle => None,
            State::Running(done) => Some(in_progress(done)),
            State::Failed { .. } => Some(Sense::new(Key::MediumError, Code::SANITIZE_FAILED)),
        }
    }

    /// The LUN is taken away.
    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
    }

    /// EXIT FAILURE MODE: nothing to do if there was no failure.
    pub(super) fn exit_failure(&self) -> Result<(), Sense> {
        let state = *self.state();
        match state {
            State::Idle => Ok(()),
            State::Running(done) => Err(in_progress(done)),
            State::Failed { may_exit: false } => Err(Sense::field(1, Some(4))),
            State::Failed { may_exit: true } => {
                self.set(State::Idle);
                Ok(())
            }
        }
    }

    fn begin(&self, manner: Manner) -> Result<(), Sense> {
        let mut state = self.state();
        match *state {
            State::Running(done) => return Err(in_progress(done)),
            // Who was told that nothing but success ends it is not told otherwise by the next attempt.
            State::Failed { may_exit: false } if manner.may_exit => return Err(Sense::field(1, Some(5))),
            State::Idle | State::Failed { .. } => {}
        }
        *state = State::Running(0);
        self.is_busy.store(true, Ordering::Release);
        Ok(())
    }
}

fn in_progress(done: u16) -> Sense {
    let specifics = Some(Specifics::Progress(done));
    Sense { specifics, ..Sense::new(Key::NotReady, Code::SANITIZE_IN_PROGRESS) }
}

/// Begins, and waits for the end unless told not to, or until `stop`.
pub(super) fn run(lun: &Arc<Lun>, work: Work, manner: Manner, stop: &AtomicBool) -> Result<(), Outcome> {
    let sanitizing = Arc::clone(&lun.sanitizing);
    sanitizing.begin(manner)?;
    let of_thread = Arc::clone(lun);
    let thread = std::thread::Builder::new().name("sanitize".to_owned()).spawn(move || {
        let done = sanitize(&of_thread, &work);
        let failed = State::Failed { may_exit: manner.may_exit };
        of_thread.sanitizing.set(done.map_or(failed, |()| State::Idle));
    });
    if thread.is_err() {
        sanitizing.set(State::Idle);
        return Err(Sense::illegal(Code::INSUFFICIENT_RESOURCES).into());
    }
    if manner.is_immediate {
        return Ok(());
    }
    let mut state = sanitizing.state();
    loop {
        match *state {
            State::Running(_) if stop.load(Ordering::Relaxed) => {
                return Err(Sense::new(Key::AbortedCommand, Code::NONE).into());
            }
            State::Running(_) => {
                let waited = sanitizing.changed.wait_timeout(state, LOOK);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            State::Idle => return Ok(()),
            State::Failed { .. } => return Err(Sense::new(Key::MediumError, Code::SANITIZE_FAILED).into()),
        }
    }
}

fn sanitize(lun: &Lun, work: &Work) -> Result<(), Sense> {
    let (medium, given_up) = (&lun.medium, &lun.sanitizing.is_given_up);
    let size = medium.size();
    let passes = match work {
        Work::ThrowKeyAway => return medium.erase_by_key(),
        Work::Erase => 1,
        Work::Overwrite { passes, .. } => *passes,
    };
    for pass in 0..passes {
        let pattern: Vec<u8> = match work {
            Work::Erase | Work::ThrowKeyAway => Vec::new(),
            Work::Overwrite { block, is_inverted, .. } => {
                // The last time it is as it was given.
                let mask = if *is_inverted && (passes - 1 - pass) % 2 == 1 { 0xff } else { 0 };
                let block: Vec<u8> = block.iter().map(|byte| byte ^ mask).collect();
                block.repeat((STEP / block.len()).max(1))
            }
        };
        let mut at = 0;
        while at < size {
            super::medium::check_stop(given_up)?;
            let step = if pattern.is_empty() { ERASE_STEP } else { pattern.len() as u64 };
            let end = at.saturating_add(step).min(size);
            // Erasing moves no bytes.
            medium.pace(if pattern.is_empty() { 0 } else { end - at }, given_up)?;
            if pattern.is_empty() {
                let how = Zeroing { may_unmap: true, fast_only: false, durability: Durability::Cached };
                medium.zero(at..end, how, given_up)?;
            } else {
                let len = usize::try_from(end - at).unwrap_or(usize::MAX);
                medium.write(at, pattern.get(..len).unwrap_or_default(), Durability::Cached)?;
            }
            at = end;
            lun.sanitizing.set(State::Running(progress(pass, passes, at, size)));
        }
        // Each pass reaches the medium, and not only a cache of what is below.
        medium.flush()?;
    }
    Ok(())
}

/// Passes and bytes done as 65,536ths of all.
fn progress(pass: u8, passes: u8, at: u64, size: u64) -> u16 {
    let done = u128::from(pass) * u128::from(size) + u128::from(at);
    let all = u128::from(passes) * u128::from(size);
    u16::try_from(done * 65_535 / all.max(1)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_checked() {
        let list = |passes, len: u8, pattern: usize| [vec![passes, 0, 0, len], vec![7; pattern]].concat();
        assert!(Work::overwrite(&list(1, 3, 3), 512).is_ok());
        for bad in [list(0, 3, 3), list(1, 0, 0), list(1, 3, 2), list(1, 2, 3), list(1, 3, 0)] {
            assert!(Work::overwrite(&bad, 512).is_err(), "{bad:?}");
        }
        let long = [vec![0x81, 0, 2, 1], vec![1; 513]].concat();
        assert!(Work::overwrite(&long, 512).is_err());
    }

    #[test]
    fn progress_ends_with_the_last_pass() {
        assert_eq!(progress(0, 2, 0, 100), 0);
        assert_eq!(progress(0, 2, 100, 100), 32_767);
        assert_eq!(progress(1, 2, 100, 100), 65_535);
        assert_eq!(progress(30, 31, u64::MAX, u64::MAX), 65_535);
    }
}

//! What one connection holds of one of the server's budgets, beyond an allowance of its own.
//!
//! What holds: what is counted is given back as it was counted; the budget gets its part back when the allowance is enough again, also
//! while more is waited for: else those who wait could keep all that there is from each other, and none of it in use.

use coffer_gateway::serving::{Budget, Grant, Wait};
use std::sync::Arc;
use std::task::{Context, Poll};

/// See the file's header.
pub(super) struct Ration {
    budget: Arc<Budget>,
    /// The allowance, in bytes.
    own: usize,
    /// The most that is counted, but for a single piece.
    most: usize,
    used: usize,
    grant: Option<Grant>,
    wait: Option<Wait>,
}

impl Ration {
    pub(super) fn new(budget: &Arc<Budget>, own: usize, most: usize) -> Self {
        Ration { budget: Arc::clone(budget), own, most, used: 0, grant: None, wait: None }
    }

    /// Counts `bytes`, beside `other` bytes that are counted elsewhere, if they are to be had without waiting.
    pub(super) fn try_take(&mut self, bytes: usize, other: usize) -> bool {
        let held = self.used.saturating_add(other);
        if self.wait.is_some() || (held > 0 && held.saturating_add(bytes) > self.most) {
            return false;
        }
        let lacking = self.lacking(bytes, other);
        if lacking > 0 {
            let Some(grant) = self.budget.try_take(lacking) else { return false };
            self.granted(grant);
        }
        self.used += bytes;
        true
    }

    /// As [`Ration::try_take`], and begins to wait if it is the budget that lacks them.
    pub(super) fn take(&mut self, bytes: usize, other: usize) -> bool {
        if self.try_take(bytes, other) {
            return true;
        }
        let held = self.used.saturating_add(other);
        let may_wait = self.wait.is_none() && (held == 0 || held.saturating_add(bytes) <= self.most);
        if may_wait {
            self.wait = Some(self.budget.take(self.lacking(bytes, other)));
        }
        false
    }

    /// Whether bytes are waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// Whether anything is kept from others.
    pub(super) fn is_granted(&self) -> bool {
        self.grant.is_some()
    }

    /// Looks whether what was waited for is there.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(wait) = &mut self.wait else { return false };
        let Poll::Ready(granted) = wait.as_mut().poll(cx) else { return false };
        self.wait = None;
        granted.into_iter().for_each(|grant| self.granted(grant));
        true
    }

    /// Counts `bytes` no more.
    pub(super) fn give_back(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes);
    }

    /// Gives back what is not needed; whether what was waited for has to be asked for again.
    pub(super) fn settle(&mut self, other: usize) -> bool {
        if self.grant.is_none() || self.used.saturating_add(other) > self.own {
            return false;
        }
        self.grant = None;
        self.wait.take().is_some()
    }

    fn lacking(&self, bytes: usize, other: usize) -> usize {
        let have = self.own.saturating_add(self.grant.as_ref().map_or(0, Grant::bytes));
        self.used.saturating_add(other).saturating_add(bytes).saturating_sub(have)
    }

    fn granted(&mut self, grant: Grant) {
        match &mut self.grant {
            Some(granted) => granted.merge(grant),
            None => self.grant = Some(grant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    #[test]
    fn beyond_its_own_it_has_what_the_budget_grants() {
        let budget = Budget::new(8 * KIB);
        let mut one = Ration::new(&budget, KIB, 100 * KIB);
        let mut other = Ration::new(&budget, KIB, 4 * KIB);
        assert!(one.try_take(7 * KIB, 0) && !one.try_take(4 * KIB, 0) && one.used == 7 * KIB);
        assert!(other.try_take(3 * KIB, 0) && !other.try_take(2 * KIB, 0), "that is the most of it");
        assert!(!one.take(KIB, KIB) && one.is_waiting() && !one.try_take(1, 0));
        other.give_back(3 * KIB);
        other.settle(0);
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(one.poll(&mut context) && one.try_take(KIB, KIB) && one.is_granted());
        one.give_back(8 * KIB);
        one.settle(KIB + 1);
        assert!(one.is_granted());
        one.settle(KIB);
        assert!(!one.is_granted() && budget.try_take(8 * KIB).is_some());
        // Who waits for more keeps nothing that is not in use.
        assert!(one.try_take(7 * KIB, 0) && !one.take(4 * KIB, 0) && one.is_waiting());
        one.give_back(7 * KIB);
        assert!(one.settle(0) && !one.is_waiting() && budget.try_take(8 * KIB).is_some());
        assert!(one.take(4 * KIB, 0) && !one.settle(0));
        one.give_back(4 * KIB);
        one.settle(0);
        assert!(other.try_take(9 * KIB, 0) && other.used == 9 * KIB, "one piece is possible with any ration");
    }
}

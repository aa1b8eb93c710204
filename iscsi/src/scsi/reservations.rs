//! Persistent reservations: who has registered, who holds the disk, and what that stops. Pure: no I/O, no LUN.
//!
//! ```text
//!   register -> reserve -> release            an order that is refused changes nothing
//!       \          \-> preempt, move, clear   an order that is done says whom it concerns
//! ```
//! Not here: parameters' bytes, files. What holds: SPC-4 5.12; the holder is always registered, and while all registrants hold the
//! disk there is at least one of them.

use super::opcodes::Access;
use super::sense::{Code, Outcome, Sense};
use std::collections::BTreeMap;
use std::fmt;

/// Registrations at one LUN at most.
const MAX_REGISTRANTS: usize = 1024;

/// A nexus as reservations know it: the initiator port's name, and the relative identifier of the target port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Party {
    pub(super) initiator: String,
    pub(super) port: u16,
}

/// The type of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrantsOnly = 5,
    ExclusiveAccessRegistrantsOnly = 6,
    WriteExclusiveAllRegistrants = 7,
    ExclusiveAccessAllRegistrants = 8,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::WriteExclusive => "write exclusive",
            Kind::ExclusiveAccess => "exclusive access",
            Kind::WriteExclusiveRegistrantsOnly => "write exclusive, registrants only",
            Kind::ExclusiveAccessRegistrantsOnly => "exclusive access, registrants only",
            Kind::WriteExclusiveAllRegistrants => "write exclusive, all registrants",
            Kind::ExclusiveAccessAllRegistrants => "exclusive access, all registrants",
        })
    }
}

impl Kind {
    pub(super) const ALL: [Kind; 6] = [
        Kind::WriteExclusive,
        Kind::ExclusiveAccess,
        Kind::WriteExclusiveRegistrantsOnly,
        Kind::ExclusiveAccessRegistrantsOnly,
        Kind::WriteExclusiveAllRegistrants,
        Kind::ExclusiveAccessAllRegistrants,
    ];

    pub(super) fn from_number(number: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Whether every registrant holds it.
    pub(super) fn is_everybodys(self) -> bool {
        matches!(self, Kind::WriteExclusiveAllRegistrants | Kind::ExclusiveAccessAllRegistrants)
    }

    /// Whether every registrant may do what it stops others from.
    pub(super) fn admits_registrants(self) -> bool {
        !matches!(self, Kind::WriteExclusive | Kind::ExclusiveAccess)
    }

    /// Whether everybody may read.
    pub(super) fn admits_readers(self) -> bool {
        matches!(self, Kind::WriteExclusive | Kind::WriteExclusiveRegistrantsOnly | Kind::WriteExclusiveAllRegistrants)
    }
}

/// A reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) kind: Kind,
    /// Who reserved it; with a type that is everybody's, one of those who hold it.
    pub(super) holder: Party,
}

/// What a nexus asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// `expected` is the key that the nexus has, 0 for none, `None` to ignore that; `others` are registered along with it.
    Register {
        expected: Option<u64>,
        key: u64,
        is_lasting: bool,
        others: Vec<Party>,
    },
    Reserve {
        key: u64,
        kind: Kind,
    },
    Release {
        key: u64,
        kind: Option<Kind>,
    },
    Clear {
        key: u64,
    },
    Preempt {
        key: u64,
        victim: u64,
        kind: Kind,
        is_abort: bool,
    },
    Move {
        key: u64,
        new_key: u64,
        to: Party,
        is_leaving: bool,
        is_lasting: bool,
    },
    /// The nexus registers `key` and holds the disk, instead of whoever did before that was lost.
    Replace {
        key: u64,
        kind: Kind,
        is_lasting: bool,
    },
}

/// Whom an order that was done concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Consequences {
    /// Attentions.
    pub(super) told: Vec<(Party, Code)>,
    /// Whose tasks end.
    pub(super) aborted: Vec<Party>,
}

/// All of a LUN's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reservations {
    pub(super) generation: u32,
    /// Whether they outlive a loss of power.
    pub(super) is_lasting: bool,
    pub(super) keys: BTreeMap<Party, u64>,
    pub(super) held: Option<Held>,
    /// Nobody knows any more who had registered and who held the disk.
    pub(super) is_lost: bool,
}

impl Reservations {
    /// Whether `party` holds the disk.
    pub(super) fn is_holder(&self, party: &Party) -> bool {
        self.held.as_ref().is_some_and(|held| match held.kind.is_everybodys() {
            true => self.keys.contains_key(party),
            false => held.holder == *party,
        })
    }

    /// Whether a command of `party` is let through.
    pub(super) fn admits(&self, party: &Party, access: Access) -> bool {
        let Some(held) = &self.held else { return true };
        match access {
            Access::Free => true,
            Access::Reads if held.kind.admits_readers() => true,
            Access::Reads | Access::Writes => {
                self.is_holder(party) || (held.kind.admits_registrants() && self.keys.contains_key(party))
            }
        }
    }

    /// How a command of old to reserve or release ends, if there are registrations: they have replaced it.
    pub(super) fn old_command(&self, party: &Party) -> Option<Outcome> {
        let is_registered = self.keys.contains_key(party);
        let is_friendly = self.held.as_ref().is_some_and(|held| held.kind.admits_registrants() && is_registered);
        match self.keys.is_empty() {
            true => None,
            false if self.is_holder(party) || is_friendly => Some(Outcome::GOOD),
            false => Some(Outcome::CONFLICT),
        }
    }

    /// Does `order` of `party`. A refusal changes nothing.
    pub(super) fn apply(&mut self, party: &Party, order: &Order) -> Result<Consequences, Outcome> {
        match order {
            Order::Register { expected, key, is_lasting, others } => {
                self.register(party, *expected, *key, *is_lasting, others)
            }
            Order::Reserve { key, kind } => self.reserve(party, *key, *kind),
            Order::Release { key, kind } => self.release(party, *key, *kind),
            Order::Clear { key } => {
                self.check_key(party, *key)?;
                let told = self.others(party).map(|other| (other.clone(), Code::RESERVATIONS_PREEMPTED)).collect();
                self.keys.clear();
                self.held = None;
                self.generation = self.generation.wrapping_add(1);
                Ok(Consequences { told, ..Consequences::default() })
            }
            Order::Preempt { key, victim, kind, is_abort } => self.preempt(party, *key, *victim, *kind, *is_abort),
            Order::Move { key, new_key, to, is_leaving, is_lasting } => {
                self.check_key(party, *key)?;
                let held = self.held.as_mut().filter(|held| held.holder == *party && !held.kind.is_everybodys());
                let Some(held) = held else { return Err(Outcome::CONFLICT) };
                if to == party {
                    return Err(Sense::parameter(24, None).into());
                }
                held.holder = to.clone();
                self.keys.insert(to.clone(), *new_key);
                if *is_leaving {
                    self.keys.remove(party);
                }
                self.is_lasting = *is_lasting;
                self.generation = self.generation.wrapping_add(1);
                Ok(Consequences::default())
            }
            Order::Replace { key, kind, is_lasting } => {
                if !self.is_lost {
                    return Err(Sense::field(1, Some(4)).into());
                }
                *self = Reservations {
                    generation: self.generation.wrapping_add(1),
                    is_lasting: *is_lasting,
                    keys: BTreeMap::from([(party.clone(), *key)]),
                    held: Some(Held { kind: *kind, holder: party.clone() }),
                    is_lost: false,
                };
                Ok(Consequences::default())
            }
        }
    }

    fn check_key(&self, party: &Party, key: u64) -> Result<(), Outcome> {
        if self.keys.get(party) == Some(&key) { Ok(()) } else { Err(Outcome::CONFLICT) }
    }

    fn others<'a>(&'a self, party: &'a Party) -> impl Iterator<Item = &'a Party> {
        self.keys.keys().filter(move |other| *other != party)
    }

    fn register(
        &mut self,
        party: &Party,
        expected: Option<u64>,
        key: u64,
        is_lasting: bool,
        others: &[Party],
    ) -> Result<Consequences, Outcome> {
        let now = self.keys.get(party).copied();
        if expected.is_some_and(|expected| expected != now.unwrap_or(0)) {
            return Err(Outcome::CONFLICT);
        }
        if key == 0 && now.is_none() {
            return Ok(Consequences::default());
        }
        // Others are registered with the first registration only, and not over one that they have.
        if !others.is_empty() && (key == 0 || others.iter().any(|other| self.keys.contains_key(other))) {
            return Err(Outcome::CONFLICT);
        }
        if self.keys.len().saturating_add(others.len()) >= MAX_REGISTRANTS && now.is_none() {
            return Err(Sense::illegal(Code::INSUFFICIENT_REGISTRATION_RESOURCES).into());
        }
        self.generation = self.generation.wrapping_add(1);
        self.is_lasting = is_lasting;
        if key != 0 {
            for who in others.iter().chain([party]) {
                self.keys.insert(who.clone(), key);
            }
            return Ok(Consequences::default());
        }
        self.keys.remove(party);
        Ok(self.leave_held(party))
    }

    /// What becomes of the reservation when `party` is not registered any more.
    fn leave_held(&mut self, party: &Party) -> Consequences {
        let Some(held) = self.held.as_mut().filter(|held| held.holder == *party) else {
            return Consequences::default();
        };
        if held.kind.is_everybodys()
            && let Some(next) = self.keys.keys().next()
        {
            held.holder = next.clone();
            return Consequences::default();
        }
        let kind = held.kind;
        self.held = None;
        self.released(party, kind)
    }

    /// Whom the end of a reservation concerns, but for `party`.
    fn released(&self, party: &Party, kind: Kind) -> Consequences {
        let told = match kind.admits_registrants() {
            true => self.others(party).map(|other| (other.clone(), Code::RESERVATIONS_RELEASED)).collect(),
            false => Vec::new(),
        };
        Consequences { told, ..Consequences::default() }
    }

    fn reserve(&mut self, party: &Party, key: u64, kind: Kind) -> Result<Consequences, Outcome> {
        self.check_key(party, key)?;
        match &self.held {
            None => self.held = Some(Held { kind, holder: party.clone() }),
            Some(held) if held.kind == kind && self.is_holder(party) => {}
            Some(_) => return Err(Outcome::CONFLICT),
        }
        Ok(Consequences::default())
    }

    /// `None`: a type that there is not.
    fn release(&mut self, party: &Party, key: u64, kind: Option<Kind>) -> Result<Consequences, Outcome> {
        self.check_key(party, key)?;
        let Some(held) = &self.held else { return Ok(Consequences::default()) };
        if !self.is_holder(party) {
            return Ok(Consequences::default());
        }
        if Some(held.kind) != kind {
            return Err(Sense::illegal(Code::RELEASE_OF_RESERVATION).into());
        }
        let kind = held.kind;
        self.held = None;
        Ok(self.released(party, kind))
    }

    fn preempt(
        &mut self,
        party: &Party,
        key: u64,
        victim: u64,
        kind: Kind,
        is_abort: bool,
    ) -> Result<Consequences, Outcome> {
        self.check_key(party, key)?;
        let takes_over = match &self.held {
            Some(held) if held.kind.is_everybodys() => victim == 0,
            Some(held) => self.keys.get(&held.holder) == Some(&victim),
            None => false,
        };
        if victim == 0 && !takes_over {
            return Err(Sense::parameter(8, None).into());
        }
        if !takes_over && !self.keys.values().any(|key| *key == victim) {
            return Err(Outcome::CONFLICT);
        }
        // With a reservation of everybody's, key 0 means all the others.
        let is_victim = |other: &Party, key: u64| other != party && (victim == 0 || key == victim);
        let gone: Vec<Party> = self.keys.iter().filter(|(p, k)| is_victim(p, **k)).map(|(p, _)| p.clone()).collect();
        self.keys.retain(|other, key| !is_victim(other, *key));
        self.generation = self.generation.wrapping_add(1);
        let mut told: Vec<(Party, Code)> = gone.iter().map(|p| (p.clone(), Code::REGISTRATIONS_PREEMPTED)).collect();
        let before = self.held.as_ref().map(|held| held.kind);
        if takes_over {
            self.held = Some(Held { kind, holder: party.clone() });
            if before != Some(kind) {
                told.extend(self.others(party).map(|other| (other.clone(), Code::RESERVATIONS_RELEASED)));
            }
        } else if let Some(held) = &mut self.held
            && !self.keys.contains_key(&held.holder)
        {
            // One of those who held it together went; the one who sent it away is another.
            held.holder = party.clone();
        }
        Ok(Consequences { told, aborted: if is_abort { gone } else { Vec::new() } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn party(number: u16) -> Party {
        Party { initiator: format!("iqn.{number},i,0x000000000000"), port: 1 + number % 2 }
    }

    fn orders() -> impl Strategy<Value = Vec<(u16, Order)>> {
        let key = || 0..4u64;
        let kind = || (0..6usize).prop_map(|i| Kind::ALL[i]);
        let order = prop_oneof![
            4 => (prop::option::of(key()), key(), any::<bool>()).prop_map(|(expected, key, is_lasting)| {
                Order::Register { expected, key, is_lasting, others: Vec::new() }
            }),
            1 => (key(), prop::collection::vec(0..4u16, 0..3)).prop_map(|(key, others)| Order::Register {
                expected: Some(0),
                key,
                is_lasting: false,
                others: others.into_iter().map(party).collect(),
            }),
            3 => (key(), kind()).prop_map(|(key, kind)| Order::Reserve { key, kind }),
            2 => (key(), kind()).prop_map(|(key, kind)| Order::Release { key, kind: Some(kind) }),
            1 => key().prop_map(|key| Order::Clear { key }),
            3 => (key(), key(), kind(), any::<bool>()).prop_map(|(key, victim, kind, is_abort)| {
                Order::Preempt { key, victim, kind, is_abort }
            }),
            1 => (1..4u64, kind()).prop_map(|(key, kind)| Order::Replace { key, kind, is_lasting: false }),
            1 => (key(), 1..4u64, 0..4u16, any::<bool>()).prop_map(|(key, new_key, to, is_leaving)| {
                Order::Move { key, new_key, to: party(to), is_leaving, is_lasting: false }
            }),
        ];
        prop::collection::vec((0..4u16, order), 1..60)
    }

    /// What the tables of SPC-4 say of who is let through: by type, whether it is the holder, and whether it is registered.
    fn table(kind: Kind, is_holder: bool, is_registered: bool) -> [bool; 2] {
        match (kind as u8, is_holder, is_registered) {
            (_, true, _) | (5..=8, _, true) => [true, true],
            (1 | 5 | 7, ..) => [true, false],
            _ => [false, false],
        }
    }

    proptest! {
        #[test]
        fn whatever_is_ordered_the_state_is_sound(orders in orders()) {
            let mut state = Reservations::default();
            for (who, order) in orders {
                let (who, before) = (party(who), state.clone());
                let done = state.apply(&who, &order);
                let Ok(consequences) = done else {
                    prop_assert_eq!(&state, &before, "{:?} was refused and changed something", order);
                    continue;
                };
                // Every key is one, and the holder has one.
                prop_assert!(state.keys.values().all(|key| *key != 0));
                if let Some(held) = &state.held {
                    prop_assert!(state.keys.contains_key(&held.holder), "{:?}: {:?}", order, state);
                }
                for number in 0..5 {
                    let other = party(number);
                    let found = [Access::Reads, Access::Writes].map(|access| state.admits(&other, access));
                    let expected = state.held.as_ref().map_or([true, true], |held| {
                        table(held.kind, state.is_holder(&other), state.keys.contains_key(&other))
                    });
                    prop_assert_eq!(found, expected);
                    prop_assert!(state.admits(&other, Access::Free));
                }
                // Who orders knows; others are told when they lose something, once.
                let told: BTreeSet<&Party> = consequences.told.iter().map(|(party, _)| party).collect();
                prop_assert_eq!(told.len(), consequences.told.len());
                prop_assert!(!told.contains(&who) && !consequences.aborted.contains(&who));
                let lost: Vec<&Party> = before.keys.keys().filter(|p| **p != who && !state.keys.contains_key(*p)).collect();
                prop_assert!(lost.iter().all(|party| told.contains(*party)), "{:?}", order);
                if let Order::Preempt { is_abort: true, .. } = order {
                    prop_assert_eq!(consequences.aborted.iter().collect::<Vec<_>>(), lost);
                }
                let grew = state.generation.wrapping_sub(before.generation);
                let counts = !matches!(order, Order::Reserve { .. } | Order::Release { .. });
                prop_assert!(grew == u32::from(counts) || (grew == 0 && state == before), "{:?}", order);
            }
        }
    }

    #[test]
    fn what_was_lost_is_replaced_once() {
        let mut state = Reservations { is_lost: true, ..Reservations::default() };
        let replace = Order::Replace { key: 5, kind: Kind::WriteExclusive, is_lasting: true };
        state.apply(&party(1), &replace).unwrap();
        assert!(!state.is_lost && state.is_lasting && state.is_holder(&party(1)) && !state.is_holder(&party(0)));
        assert_eq!((state.keys.get(&party(1)), state.generation), (Some(&5), 1));
        let before = state.clone();
        assert_eq!(state.apply(&party(2), &replace), Err(Sense::field(1, Some(4)).into()));
        assert_eq!(state, before);
    }

    #[test]
    fn the_last_of_all_registrants_takes_the_reservation_along() {
        let mut state = Reservations::default();
        let register = |key| Order::Register { expected: None, key, is_lasting: false, others: Vec::new() };
        for (number, key) in [(0, 1), (1, 2)] {
            state.apply(&party(number), &register(key)).unwrap();
        }
        let kind = Kind::ExclusiveAccessAllRegistrants;
        state.apply(&party(0), &Order::Reserve { key: 1, kind }).unwrap();
        state.apply(&party(0), &register(0)).unwrap();
        assert!(state.is_holder(&party(1)) && !state.is_holder(&party(0)));
        state.apply(&party(1), &register(0)).unwrap();
        assert_eq!(state.held, None);
    }
}

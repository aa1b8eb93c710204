//! PERSISTENT RESERVE IN and OUT as bytes: parameters become orders, and what is reserved becomes replies. Pure.
//!
//! Not here: what orders do ([`super::reservations`]). What holds: nothing panics; a list whose length is not what the service
//! action has is refused before it is looked at.

use super::field::{be16, be32, be64, count32, has};
use super::reservations::{Kind, Order, Party, Reservations};
use super::sense::{Code, Outcome, Sense};
use super::transport_id;

/// The one scope that there is: the whole logical unit.
const WHOLE_UNIT: u8 = 0;
/// Bytes of a parameter list at most: a basic one and some hundred TransportIDs.
pub(super) const MAX_LIST: u32 = 64 << 10;

/// What the device offers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer<'a> {
    /// Reservations can be kept over a loss of power.
    pub(super) can_last: bool,
    /// Relative identifiers of the target ports.
    pub(super) ports: &'a [u16],
}

/// The order that a PERSISTENT RESERVE OUT of `party` is.
pub(super) fn order(
    action: u8,
    scope: u8,
    kind: u8,
    list: &[u8],
    party: &Party,
    offer: Offer<'_>,
) -> Result<Order, Outcome> {
    let (key, service_key) = (be64(list, 0), be64(list, 8));
    if action == 0x07 {
        return moving(list, offer);
    }
    if action == 0x08 {
        return replacing(scope, kind, list, offer);
    }
    let is_registration = matches!(action, 0x00 | 0x06);
    let (names_ports, all_ports, is_lasting) = (has(list, 20, 0x08), has(list, 20, 0x04), has(list, 20, 0x01));
    if list.len() < 24 || (list.len() != 24 && !(is_registration && names_ports)) {
        return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR).into());
    }
    if !is_registration {
        if scope != WHOLE_UNIT {
            return Err(Sense::field(2, Some(7)).into());
        }
        let kind = Kind::from_number(kind);
        let kind = match action {
            0x02 => return Ok(Order::Release { key, kind }),
            0x03 => return Ok(Order::Clear { key }),
            _ => kind.ok_or(Sense::field(2, Some(3)))?,
        };
        return Ok(match action {
            0x01 => Order::Reserve { key, kind },
            _ => Order::Preempt { key, victim: service_key, kind, is_abort: action == 0x05 },
        });
    }
    if is_lasting && !offer.can_last {
        return Err(Sense::parameter(20, Some(0)).into());
    }
    // With the other one this bit is not defined.
    if names_ports && action == 0x06 {
        return Err(Sense::parameter(20, Some(3)).into());
    }
    let mut initiators = vec![party.initiator.clone()];
    if names_ports {
        initiators.extend(named_initiators(list)?);
    }
    let ports = if all_ports { offer.ports } else { std::slice::from_ref(&party.port) };
    let mut others: Vec<Party> = Vec::new();
    for initiator in &initiators {
        others.extend(ports.iter().map(|port| Party { initiator: initiator.clone(), port: *port }));
    }
    others.retain(|other| other != party);
    others.sort();
    others.dedup();
    let expected = (action == 0x00).then_some(key);
    Ok(Order::Register { expected, key: service_key, is_lasting, others })
}

/// The initiator ports of a REGISTER with SPEC_I_PT.
fn named_initiators(list: &[u8]) -> Result<Vec<String>, Outcome> {
    let len = usize::try_from(be32(list, 24)).unwrap_or(usize::MAX);
    let Some(mut rest) = list.get(28..).filter(|rest| rest.len() == len) else {
        return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR).into());
    };
    let mut names = Vec::new();
    while !rest.is_empty() {
        let (name, taken) = transport_id::decode(rest, list.len() - rest.len())?;
        names.push(name);
        rest = rest.get(taken..).unwrap_or_default();
    }
    Ok(names)
}

fn moving(list: &[u8], offer: Offer<'_>) -> Result<Order, Outcome> {
    let len = usize::try_from(be32(list, 20)).unwrap_or(usize::MAX);
    let Some(id) = list.get(24..).filter(|rest| rest.len() == len && len >= 24) else {
        return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR).into());
    };
    let (key, new_key, port) = (be64(list, 0), be64(list, 8), be16(list, 18));
    let (is_leaving, is_lasting) = (has(list, 17, 0x02), has(list, 17, 0x01));
    if new_key == 0 {
        return Err(Sense::parameter(8, None).into());
    }
    if is_lasting && !offer.can_last {
        return Err(Sense::parameter(17, Some(0)).into());
    }
    if !offer.ports.contains(&port) {
        return Err(Sense::parameter(18, None).into());
    }
    let (initiator, taken) = transport_id::decode(id, 24)?;
    let to = Party { initiator, port };
    if taken != id.len() {
        return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR).into());
    }
    Ok(Order::Move { key, new_key, to, is_leaving, is_lasting })
}

fn replacing(scope: u8, kind: u8, list: &[u8], offer: Offer<'_>) -> Result<Order, Outcome> {
    let (key, is_lasting) = (be64(list, 8), has(list, 20, 0x01));
    if list.len() != 24 {
        return Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR).into());
    }
    if scope != WHOLE_UNIT {
        return Err(Sense::field(2, Some(7)).into());
    }
    let kind = Kind::from_number(kind).ok_or(Sense::field(2, Some(3)))?;
    // Nobody has a key, and whoever replaces has to get one. Ports cannot be named.
    for (is_wrong, at, bit) in [
        (be64(list, 0) != 0, 0, None),
        (key == 0, 8, None),
        (has(list, 20, 0x0c), 20, Some(3)),
        (is_lasting && !offer.can_last, 20, Some(0)),
    ] {
        if is_wrong {
            return Err(Sense::parameter(at, bit).into());
        }
    }
    Ok(Order::Replace { key, kind, is_lasting })
}

/// The reply to PERSISTENT RESERVE IN.
pub(super) fn report(action: u8, state: &Reservations, offer: Offer<'_>) -> Vec<u8> {
    let body: Vec<u8> = match action {
        0x00 => state.keys.values().flat_map(|key| key.to_be_bytes()).collect(),
        0x01 => reservation(state),
        0x02 => return capabilities(state, offer),
        _ => state.keys.iter().flat_map(|(party, key)| full_status(state, party, *key)).collect(),
    };
    [&state.generation.to_be_bytes()[..], &count32(body.len()), &body].concat()
}

fn reservation(state: &Reservations) -> Vec<u8> {
    let Some(held) = &state.held else { return Vec::new() };
    let key = match held.kind.is_everybodys() {
        true => 0,
        false => state.keys.get(&held.holder).copied().unwrap_or(0),
    };
    [&key.to_be_bytes()[..], &[0, 0, 0, 0, 0, held.kind as u8, 0, 0]].concat()
}

fn capabilities(state: &Reservations, offer: Offer<'_>) -> Vec<u8> {
    // What was lost can be replaced (RLR_C), commands of old are friendly to holders (CRH), ports can be named (SIP_C) and be all of
    // them (ATP_C), keys can last (PTPL_C); the types are told (TMV).
    let can = 0x9c | u8::from(offer.can_last);
    let is = 0x80 | u8::from(state.is_lasting);
    vec![0, 8, can, is, 0xea, 0x01, 0, 0]
}

fn full_status(state: &Reservations, party: &Party, key: u64) -> Vec<u8> {
    let id = transport_id::encode(&party.initiator);
    let held = state.held.as_ref().filter(|_| state.is_holder(party));
    let (holds, kind) = held.map_or((0, 0), |held| (1, held.kind as u8));
    let [port_high, port_low] = party.port.to_be_bytes();
    let head = [0, 0, 0, 0, holds, kind, 0, 0, 0, 0, port_high, port_low];
    [&key.to_be_bytes()[..], &head, &count32(id.len()), &id].concat()
}

/// The length of the list that a basic order has.
pub(super) fn check_list(action: u8, list: u32) -> Result<(), Sense> {
    let is_fine = match action {
        0x00 | 0x06 | 0x07 => (24..=MAX_LIST).contains(&list),
        _ => list == 24,
    };
    if is_fine { Ok(()) } else { Err(Sense::illegal(Code::PARAMETER_LIST_LENGTH_ERROR)) }
}

/// The parameters of a basic order.
#[cfg(test)]
pub(super) fn basic_list(key: u64, service_key: u64, flags: u8) -> Vec<u8> {
    [&key.to_be_bytes()[..], &service_key.to_be_bytes(), &[0, 0, 0, 0, flags, 0, 0, 0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: Offer<'static> = Offer { can_last: true, ports: &[1, 2] };

    fn party() -> Party {
        Party { initiator: transport_id::port_name("iqn.a", [0; 6]), port: 1 }
    }

    #[test]
    fn ports_can_be_named_and_be_all_of_them() {
        let id = transport_id::encode("iqn.b,i,0x0000000000ab");
        let mut list = basic_list(0, 7, 0x0d);
        list.extend(count32(id.len()));
        list.extend(&id);
        let Ok(Order::Register { expected: Some(0), key: 7, is_lasting: true, others }) =
            order(0, 0, 0, &list, &party(), OFFER)
        else {
            panic!("not a registration");
        };
        let known: Vec<_> = others.iter().map(|p| (&p.initiator[..5], p.port)).collect();
        assert_eq!(known, [("iqn.a", 2), ("iqn.b", 1), ("iqn.b", 2)]);
        for len in 0..list.len() {
            assert!(order(0, 0, 0, &list[..len], &party(), OFFER).is_err(), "{len}");
        }
        assert!(order(6, 0, 0, &list, &party(), OFFER).is_err());
        assert!(order(0, 0, 0, &basic_list(0, 7, 1), &party(), Offer { can_last: false, ..OFFER }).is_err());
    }

    #[test]
    fn a_replacement_brings_a_key_and_no_more() {
        let replace = |list: &[u8], offer| order(8, 0, 5, list, &party(), offer);
        let kind = Kind::WriteExclusiveRegistrantsOnly;
        assert_eq!(replace(&basic_list(0, 9, 1), OFFER), Ok(Order::Replace { key: 9, kind, is_lasting: true }));
        for list in [basic_list(1, 9, 0), basic_list(0, 0, 0), basic_list(0, 9, 4), basic_list(0, 9, 8), vec![0; 23]] {
            assert!(replace(&list, OFFER).is_err(), "{list:?}");
        }
        assert!(replace(&basic_list(0, 9, 1), Offer { can_last: false, ..OFFER }).is_err());
        assert!(order(8, 1, 5, &basic_list(0, 9, 0), &party(), OFFER).is_err());
    }

    #[test]
    fn types_and_scopes_that_there_are_not_are_refused() {
        for kind in 0..16 {
            let is_fine = [1, 3, 5, 6, 7, 8].contains(&kind);
            assert_eq!(order(1, 0, kind, &basic_list(1, 0, 0), &party(), OFFER).is_ok(), is_fine);
            assert!(order(1, 1, kind, &basic_list(1, 0, 0), &party(), OFFER).is_err());
        }
    }
}

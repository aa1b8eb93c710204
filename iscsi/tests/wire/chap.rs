//! CHAP over the wire: both ways, all algorithms, and everything that must not get in.

use crate::bench::{Bench, TARGET, options};
use crate::initiator::{Initiator, Login, Pdu, connect, pairs, receive, text};
use coffer_iscsi::{Algorithm, Chap, Credentials, Guest, Secret, ServerOptions};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};

/// What is said, in the order in which it is.
type Said = Vec<(&'static str, String)>;

const INITIATORS: &str = "what the initiator knows";
const TARGETS: &str = "what the target knows";

fn secret(secret: &str) -> Secret {
    Secret::new(secret).unwrap()
}

fn chap() -> Chap {
    let initiator = Credentials { name: "joe".into(), secret: secret(INITIATORS) };
    Chap::new(initiator, Some(Credentials { name: "disk".into(), secret: secret(TARGETS) })).unwrap()
}

fn bench() -> Bench {
    let options = ServerOptions { allow_md5: true, discovery: Some(chap()), ..options() };
    Bench::with(options, vec![Guest { chap: Some(chap()), ..Guest::default() }])
}

fn ask(stream: &mut TcpStream, login: &Login, flags: u8, said: &[u8]) -> Result<Pdu, u16> {
    stream.write_all(&login.request(flags, said).encode(false, false)).unwrap();
    let answer = receive(stream, false, false).unwrap();
    match u16::from_be_bytes([answer.head[36], answer.head[37]]) {
        0 => Ok(answer),
        status => Err(status),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |out, byte| format!("{out}{byte:02x}"))
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.strip_prefix("0x").unwrap();
    (0..digits.len() / 2).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// Logs in with CHAP; `say` makes the answer to the challenge. What the target said to that.
fn log_in(
    address: SocketAddr,
    login: &Login,
    algorithm: Algorithm,
    say: impl FnOnce(u8, &[u8]) -> Said,
) -> Result<(Initiator, BTreeMap<String, String>), u16> {
    let mut stream = connect(address);
    let introduction = [login.introduction(), text(&[("AuthMethod", "CHAP,None")])].concat();
    let answer = ask(&mut stream, login, 0x81, &introduction)?;
    assert_eq!((answer.head[1], pairs(&answer.data)["AuthMethod"].as_str()), (0x00, "CHAP"));
    let answer = ask(&mut stream, login, 0x00, &text(&[("CHAP_A", &algorithm.number().to_string())]))?;
    let said = pairs(&answer.data);
    assert_eq!(said["CHAP_A"], algorithm.number().to_string());
    let said = say(said["CHAP_I"].parse().unwrap(), &unhex(&said["CHAP_C"]));
    let said: Vec<(&str, &str)> = said.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let answer = ask(&mut stream, login, 0x81, &text(&said))?;
    assert_eq!(answer.head[1], 0x81);
    let proof = pairs(&answer.data);
    let answer = ask(&mut stream, login, 0x87, &[])?;
    Ok((Initiator::after(stream, login, &answer), proof))
}

#[test]
fn both_sides_prove_themselves_with_every_algorithm() {
    let bench = bench();
    for (i, algorithm) in Algorithm::ALL.into_iter().enumerate() {
        for mut login in [Login::to(TARGET), Login { target: None, ..Login::to("") }] {
            login.isid[5] = i as u8;
            let proved = log_in(bench.address, &login, algorithm, |id, challenge| {
                let response = algorithm.response(id, &secret(INITIATORS), challenge);
                let own = [("CHAP_I", "200".to_owned()), ("CHAP_C", "0x01020304".to_owned())];
                [("CHAP_N", "joe".to_owned()), ("CHAP_R", hex(&response))].into_iter().chain(own).collect()
            });
            let (mut initiator, proof) = proved.unwrap_or_else(|status| panic!("{algorithm:?}: {status:#x}"));
            assert_eq!(proof["CHAP_N"], "disk");
            assert_eq!(unhex(&proof["CHAP_R"]), algorithm.response(200, &secret(TARGETS), &[1, 2, 3, 4]));
            initiator.ping();
        }
    }
}

#[test]
fn one_side_is_enough_if_the_initiator_does_not_ask() {
    let bench = bench();
    let one_way = |id: u8, challenge: &[u8]| {
        let response = Algorithm::Sha256.response(id, &secret(INITIATORS), challenge);
        vec![("CHAP_N", "joe".to_owned()), ("CHAP_R", hex(&response))]
    };
    let (mut initiator, proof) = log_in(bench.address, &Login::to(TARGET), Algorithm::Sha256, one_way).ok().unwrap();
    assert!(proof.is_empty());
    initiator.ping();
}

#[test]
fn without_proof_nobody_gets_in() {
    let bench = bench();
    let (address, login) = (bench.address, Login::to(TARGET));
    assert_eq!(Initiator::login(address, &login).err(), Some(0x0201), "the stage was left out");
    let first = |said: &[(&str, &str)], flags| {
        ask(&mut connect(address), &login, flags, &[login.introduction(), text(said)].concat()).err()
    };
    assert_eq!(first(&[("AuthMethod", "None")], 0x81), Some(0x0201));
    assert_eq!(first(&[], 0x83), Some(0x0201), "straight to the end");
    assert_eq!(first(&[("AuthMethod", "CHAP"), ("CHAP_A", "9")], 0x00), Some(0x0201));
    let algorithm = Algorithm::Sha1;
    let refused = |say: fn(u8, &[u8]) -> Said| log_in(address, &login, algorithm, say).map(|_| ()).unwrap_err();
    let wrong = |id: u8, challenge: &[u8]| {
        let response = Algorithm::Sha1.response(id, &secret("something else"), challenge);
        vec![("CHAP_N", "joe".to_owned()), ("CHAP_R", hex(&response))]
    };
    assert_eq!(refused(wrong), 0x0201);
    let reflected = |id: u8, challenge: &[u8]| {
        let response = Algorithm::Sha1.response(id, &secret(INITIATORS), challenge);
        let own = [("CHAP_I", "1".to_owned()), ("CHAP_C", hex(challenge))];
        [("CHAP_N", "joe".to_owned()), ("CHAP_R", hex(&response))].into_iter().chain(own).collect()
    };
    assert_eq!(refused(reflected), 0x0201);
    assert_eq!(refused(|_, _| Vec::new()), 0x0201);
    // Leaving in the middle for the next stage is no proof, either.
    let mut stream = connect(address);
    let introduction = [login.introduction(), text(&[("AuthMethod", "CHAP"), ("CHAP_A", "7")])].concat();
    ask(&mut stream, &login, 0x00, &introduction).unwrap();
    assert_eq!(ask(&mut stream, &login, 0x87, &[]).err(), Some(0x020b));
    assert_eq!(bench.server.sessions(), []);
    assert!(bench.server.refused_logins() >= 8);
}

#[test]
fn md5_has_to_be_allowed() {
    let guest = Guest { chap: Some(chap()), ..Guest::default() };
    let bench = Bench::with(options(), vec![guest]);
    let login = Login::to(TARGET);
    let introduction = [login.introduction(), text(&[("AuthMethod", "CHAP"), ("CHAP_A", "5")])].concat();
    assert_eq!(ask(&mut connect(bench.address), &login, 0x00, &introduction).err(), Some(0x0201));
    let introduction = [login.introduction(), text(&[("AuthMethod", "CHAP"), ("CHAP_A", "5,7")])].concat();
    let answer = ask(&mut connect(bench.address), &login, 0x00, &introduction).unwrap();
    assert_eq!(pairs(&answer.data)["CHAP_A"], "7");
}

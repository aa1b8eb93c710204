//! Logins: from a connection's first PDU to its full feature phase.
//!
//! ```text
//!   security stage (0) -> operational stage (1) -> full feature phase (3)
//!     chap                  keys
//! ```
//! Not here: sockets ([`crate::conversation`]); sessions, which a login that went well enters. What holds: nothing is told of a target
//! to whoever may not use it; without the proof that is asked for no stage beyond security is reached; what is wrong ends the
//! login with the status that the standard has for it; a login is bounded in number and size of its steps.

mod chap;
mod keys;

pub use chap::{Algorithm, Chap, Credentials, Secret};
pub use keys::{Allowance, Terms};

use crate::pdu::{Login, LoginStatus, Response, decode_text};
use crate::scsi::LunMask;
use crate::target::{Target, Targets};
use chap::Challenge;
use coffer_gateway::Peer;
use keys::{Circumstances, Negotiation, in_order};
use std::sync::Arc;

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL_FEATURE: u8 = 3;
/// Requests of one login.
const MAX_STEPS: usize = 64;
/// Text of one step, over all the requests that it comes in.
const MAX_TEXT: usize = 64 << 10;

/// What logins go by.
pub(crate) struct Rules<'a> {
    pub(crate) targets: &'a Targets,
    pub(crate) allowance: Allowance,
    /// What a discovery session has to prove.
    pub(crate) discovery: Option<&'a Chap>,
    pub(crate) allow_md5: bool,
    pub(crate) peer: &'a Peer,
    /// The portal group's tag.
    pub(crate) group: u16,
}

/// A login under way.
pub(crate) struct Dialogue<'a> {
    rules: Rules<'a>,
    /// What the first request said, which all others have to repeat.
    first: Option<Login>,
    stage: u8,
    steps: usize,
    text: Vec<u8>,
    is_introduced: bool,
    initiator: String,
    alias: Option<String>,
    is_discovery: bool,
    target: Option<Arc<Target>>,
    luns: LunMask,
    proof: Proof,
    negotiation: Negotiation,
}

/// How far the initiator proved who it is.
enum Proof {
    /// Nothing is asked.
    Free,
    /// Asked for, and not begun.
    Due(Chap),
    Chosen(Chap),
    Challenged(Chap, Challenge),
    Given,
}

/// A login that went well.
#[derive(Debug)]
pub(crate) struct Agreed {
    pub(crate) first: Login,
    pub(crate) initiator: String,
    pub(crate) alias: Option<String>,
    /// None for discovery.
    pub(crate) target: Option<Arc<Target>>,
    pub(crate) luns: LunMask,
    pub(crate) terms: Terms,
}

/// What is answered to one request.
#[derive(Debug)]
pub(crate) struct Step {
    /// Second byte of the response.
    pub(crate) flags: u8,
    pub(crate) pairs: Vec<(String, String)>,
    /// With the last step.
    pub(crate) agreed: Option<Agreed>,
}

impl Step {
    /// As a response of the session `tsih`.
    pub(crate) fn response(&self, login: &Login, tsih: u16) -> Response {
        let status = LoginStatus::SUCCESS;
        Response::Login { tag: login.tag, flags: self.flags, isid: login.isid, tsih, status }
    }
}

/// The response that ends a login.
pub(crate) fn refusal(login: &Login, status: LoginStatus) -> Response {
    Response::Login { tag: login.tag, flags: login.stage << 2, isid: login.isid, tsih: login.tsih, status }
}

type Outcome<T> = Result<T, LoginStatus>;

impl<'a> Dialogue<'a> {
    pub(crate) fn new(rules: Rules<'a>) -> Self {
        let negotiation = Negotiation::new(rules.allowance, Terms::default());
        Dialogue {
            rules,
            first: None,
            stage: SECURITY,
            steps: 0,
            text: Vec::new(),
            is_introduced: false,
            initiator: String::new(),
            alias: None,
            is_discovery: false,
            target: None,
            luns: LunMask::All,
            proof: Proof::Free,
            negotiation,
        }
    }

    /// Answers a request; `Err` ends the login.
    pub(crate) fn step(&mut self, login: &Login, text: &[u8]) -> Outcome<Step> {
        self.steps += 1;
        self.check(login)?;
        self.text.extend_from_slice(text);
        if self.steps > MAX_STEPS || self.text.len() > MAX_TEXT {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        let flags = login.stage << 2;
        if login.continues {
            return Ok(Step { flags, pairs: Vec::new(), agreed: None });
        }
        let said = decode_text(&std::mem::take(&mut self.text)).ok_or(LoginStatus::INITIATOR_ERROR)?;
        let mut pairs = Vec::new();
        if !self.is_introduced {
            self.introduce(login, &said, &mut pairs)?;
        }
        // Who leaves the first stage out has proven nothing, and neither has who leaves it early.
        if login.stage != SECURITY && !matches!(self.proof, Proof::Free | Proof::Given) {
            return Err(LoginStatus::AUTHENTICATION_FAILED);
        }
        let (said, of_security): (Vec<_>, Vec<_>) =
            said.into_iter().partition(|(key, _)| key != "AuthMethod" && !key.starts_with("CHAP_"));
        if login.stage == SECURITY {
            self.authenticate(&of_security, &mut pairs)?;
        } else if !of_security.is_empty() {
            return Err(LoginStatus::INITIATOR_ERROR);
        }
        self.negotiate(said, &mut pairs)?;
        if login.stage == OPERATIONAL {
            pairs.extend(self.negotiation.declaration());
        }
        // A stage is left when the initiator wants to and nothing is open.
        let may_go = login.transits && matches!(self.proof, Proof::Free | Proof::Given);
        if login.transits && matches!(self.proof, Proof::Due(_)) {
            return Err(LoginStatus::AUTHENTICATION_FAILED);
        }
        if !may_go {
            return Ok(Step { flags, pairs, agreed: None });
        }
        self.stage = login.next;
        let flags = 0x80 | flags | login.next;
        let agreed = (login.next == FULL_FEATURE).then(|| self.agreed()).flatten();
        Ok(Step { flags, pairs, agreed })
    }

    /// What is wrong with a request before its text is looked at.
    fn check(&mut self, login: &Login) -> Outcome<()> {
        if login.version_min > 0 {
            return Err(LoginStatus::UNSUPPORTED_VERSION);
        }
        let is_forward = login.next > login.stage && login.next != 2;
        if !matches!(login.stage, SECURITY | OPERATIONAL) || (login.transits && (login.continues || !is_forward)) {
            return Err(LoginStatus::INVALID_REQUEST);
        }
        match &self.first {
            None => {
                self.first = Some(*login);
                self.stage = login.stage;
            }
            Some(first) => {
                let is_same = first.tag == login.tag
                    && first.isid == login.isid
                    && first.tsih == login.tsih
                    && first.cid == login.cid
                    && self.stage == login.stage;
                if !is_same {
                    return Err(LoginStatus::INVALID_REQUEST);
                }
            }
        }
        Ok(())
    }

    /// The first request says who wants what.
    fn introduce(
        &mut self,
        login: &Login,
        said: &[(String, String)],
        pairs: &mut Vec<(String, String)>,
    ) -> Outcome<()> {
        self.is_introduced = true;
        let find = |key: &str| said.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        let initiator = find("InitiatorName").ok_or(LoginStatus::MISSING_PARAMETER)?;
        self.initiator = crate::target::check_name(initiator).map_err(|_| LoginStatus::INITIATOR_ERROR)?;
        self.alias = find("InitiatorAlias").map(str::to_owned);
        self.is_discovery = match find("SessionType") {
            None | Some("Normal") => false,
            Some("Discovery") => true,
            Some(_) => return Err(LoginStatus::SESSION_TYPE),
        };
        if self.is_discovery {
            if login.tsih != 0 {
                return Err(LoginStatus::CANNOT_INCLUDE);
            }
            self.proof = self.rules.discovery.map_or(Proof::Free, |chap| Proof::Due(chap.clone()));
            return Ok(());
        }
        let name = find("TargetName").ok_or(LoginStatus::MISSING_PARAMETER)?;
        let target = self.rules.targets.find(name).ok_or(LoginStatus::NOT_FOUND)?;
        let Some(guest) = target.admit(&self.initiator, self.rules.peer) else {
            return Err(LoginStatus::NOT_FOUND);
        };
        self.luns = guest.luns.clone();
        self.proof = guest.chap.as_ref().map_or(Proof::Free, |chap| Proof::Due(chap.clone()));
        if login.tsih != 0 {
            let session = target.session(login.tsih, &self.initiator, login.isid, self.rules.group)?;
            self.negotiation = Negotiation::new(self.rules.allowance, session.identity.terms);
        }
        pairs.push(("TargetPortalGroupTag".to_owned(), self.rules.group.to_string()));
        pairs.extend(target.options.alias.iter().map(|alias| ("TargetAlias".to_owned(), alias.clone())));
        self.target = Some(target);
        Ok(())
    }

    /// The keys of the security stage.
    fn authenticate(&mut self, said: &[(String, String)], pairs: &mut Vec<(String, String)>) -> Outcome<()> {
        let failed = LoginStatus::AUTHENTICATION_FAILED;
        if said.is_empty() {
            let is_under_way = matches!(self.proof, Proof::Chosen(_) | Proof::Challenged(..));
            return if is_under_way { Err(failed) } else { Ok(()) };
        }
        let find = |key: &str| said.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        let method = |method: &str| ("AuthMethod".to_owned(), method.to_owned());
        let offers = |wanted: &str| find("AuthMethod").is_some_and(|o| o.split(',').any(|method| method == wanted));
        self.proof = match std::mem::replace(&mut self.proof, Proof::Given) {
            Proof::Free | Proof::Given if find("AuthMethod").is_none() => return Err(LoginStatus::INITIATOR_ERROR),
            free @ (Proof::Free | Proof::Given) => {
                if !offers("None") {
                    return Err(failed);
                }
                pairs.push(method("None"));
                free
            }
            Proof::Due(chap) => {
                if !offers("CHAP") {
                    return Err(failed);
                }
                pairs.push(method("CHAP"));
                match find("CHAP_A") {
                    Some(offered) => challenged(chap, offered, self.rules.allow_md5, pairs)?,
                    None => Proof::Chosen(chap),
                }
            }
            Proof::Chosen(chap) => challenged(chap, find("CHAP_A").ok_or(failed)?, self.rules.allow_md5, pairs)?,
            Proof::Challenged(chap, challenge) => {
                pairs.extend(challenge.judge(&chap, said).map_err(|_| failed)?);
                Proof::Given
            }
        };
        Ok(())
    }

    /// All other keys.
    fn negotiate(&mut self, said: Vec<(String, String)>, pairs: &mut Vec<(String, String)>) -> Outcome<()> {
        let is_leading = self.first.is_none_or(|first| first.tsih == 0);
        let circumstances = Circumstances { is_discovery: self.is_discovery, is_leading };
        for (key, value) in in_order(said) {
            match key.as_str() {
                "InitiatorName" | "InitiatorAlias" | "SessionType" | "TargetName" => continue,
                _ => {}
            }
            let answer = self.negotiation.answer(&key, &value, circumstances);
            if let Some(answer) = answer.map_err(|_| LoginStatus::INITIATOR_ERROR)? {
                pairs.push((key, answer));
            }
        }
        Ok(())
    }

    fn agreed(&mut self) -> Option<Agreed> {
        Some(Agreed {
            first: self.first?,
            initiator: std::mem::take(&mut self.initiator),
            alias: self.alias.take(),
            target: self.target.take(),
            luns: std::mem::take(&mut self.luns),
            terms: self.negotiation.terms,
        })
    }
}

fn challenged(chap: Chap, offered: &str, allow_md5: bool, pairs: &mut Vec<(String, String)>) -> Outcome<Proof> {
    let (challenge, said) = Challenge::new(offered, allow_md5).map_err(|_| LoginStatus::AUTHENTICATION_FAILED)?;
    pairs.extend(said);
    Ok(Proof::Challenged(chap, challenge))
}

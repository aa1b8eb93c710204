//! Swift's tokens: had by name and password, renewed before they expire and when the store says they are no good.
//!
//! ```text
//!   v1, tempauth: GET auth-url, X-Auth-User, X-Auth-Key      ─> X-Auth-Token, X-Storage-Url
//!   Keystone v3:  POST auth-url/auth/tokens, JSON            ─> X-Subject-Token, catalog with the account's URL
//!   a ready token (OS_AUTH_TOKEN) and OS_STORAGE_URL         ─> as they are; nobody can renew it
//! ```
//! Not here: requests for objects ([`super::transport`] puts the token into them). What holds: one renewal at a time, whatever
//! asks for it; secrets and tokens are wiped when they go and shown nowhere. No clock is read: a token's life is the
//! difference of the two times that come with it.

use super::failure::{Answer, Failure, Wire};
use super::runtime::Runtime;
use crate::backend::address::ObjectAddress;
use crate::backend::secrets::Secrets;
use crate::error::{Error, Result};
use bytes::Bytes;
use reqwest::{Client, Method, Request, Response, Url};
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// How long a token server may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most of a token server's answer that is read: catalogs of large clouds are long.
const ANSWER: usize = 4 << 20;

/// What a request says to prove who we are.
pub(super) type Token = Arc<Zeroizing<String>>;

/// An account of a Swift store.
pub(super) struct Account {
    client: Client,
    way: Way,
    storage_url: String,
    /// The token that is used now. Held over the renewal on purpose: the others wait for its token.
    current: Mutex<Current>,
}

struct Current {
    token: Token,
    renew_at: Option<Instant>,
}

/// How a token is had.
enum Way {
    /// It was given.
    Ready,
    V1 {
        url: Url,
        user: String,
        key: Zeroizing<String>,
    },
    V3 {
        url: Url,
        body: Zeroizing<Vec<u8>>,
        region: Option<String>,
    },
}

/// What a token server gave.
struct Granted {
    token: Token,
    storage_url: Option<String>,
    life: Option<Duration>,
}

impl Account {
    /// Gets the first token. `Invalid`: what is said about the account is not complete, or the server does not take it.
    pub(super) fn open(
        address: &ObjectAddress,
        secrets: &Secrets,
        client: Client,
        runtime: &Runtime,
    ) -> Result<Account> {
        let storage_url = address.option("storage-url").or(secrets.get("OS_STORAGE_URL")).map(str::to_owned);
        let way = Way::choose(address, secrets)?;
        let granted = match (&way, secrets.get("OS_AUTH_TOKEN")) {
            (Way::Ready, Some(token)) => {
                Granted { token: Arc::new(Zeroizing::new(token.to_owned())), storage_url: None, life: None }
            }
            _ => {
                let request = way.request().map_err(|e| e.within(address))?;
                let (client, region) = (client.clone(), way.region());
                let granted = runtime.call(async move { ask(&client, request, region.as_deref()).await })?;
                granted.map_err(|failure| failure.to_error(&format!("getting a token for {address}")))?
            }
        };
        let storage_url = storage_url.or(granted.storage_url).ok_or_else(|| {
            Error::invalid(format!(
                "{address}: no object store is in the catalog for this region; say -o storage-url=URL"
            ))
        })?;
        let current = Mutex::new(Current { renew_at: renewal(granted.life), token: granted.token });
        Ok(Account { client, way, storage_url: storage_url.trim_end_matches('/').to_owned(), current })
    }

    /// The account's URL.
    pub(super) fn storage_url(&self) -> &str {
        &self.storage_url
    }

    /// A token that is good as far as is known. `refused` is the one that the store would not take.
    pub(super) async fn token(&self, refused: Option<&Token>) -> std::result::Result<Token, Failure> {
        let mut current = self.current.lock().await;
        let is_refused = refused.is_some_and(|refused| Arc::ptr_eq(refused, &current.token));
        let is_due = current.renew_at.is_some_and(|at| at <= Instant::now());
        if (is_refused || is_due) && !matches!(self.way, Way::Ready) {
            let request = self
                .way
                .request()
                .map_err(|e| Failure::Answer(Answer { message: e.to_string(), ..Answer::default() }))?;
            let granted = ask(&self.client, request, self.way.region().as_deref()).await?;
            *current = Current { renew_at: renewal(granted.life), token: granted.token };
        }
        Ok(Arc::clone(&current.token))
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Account").field(&self.storage_url).finish()
    }
}

impl Way {
    fn choose(address: &ObjectAddress, secrets: &Secrets) -> Result<Way> {
        let missing = |what: &str| Error::invalid(format!("{address}: {what}"));
        if secrets.get("OS_AUTH_TOKEN").is_some() {
            return Ok(Way::Ready);
        }
        let url = |variable: &str| -> Result<Url> {
            let text = address.option("auth-url").or(secrets.get(variable));
            let text = text.ok_or_else(|| missing(&format!("say -o auth-url=URL, or set {variable}")))?;
            text.trim_end_matches('/').parse().map_err(|_| missing("the URL for tokens is none"))
        };
        let secret = |name: &str| -> Result<&str> {
            let why = || {
                missing(&format!(
                    "{name} is missing; put it into the file of -o secret-file=FILE, or into the environment"
                ))
            };
            secrets.get(name).ok_or_else(why)
        };
        let default = if secrets.get("ST_USER").is_some() { "v1" } else { "v3" };
        if address.option("auth").unwrap_or(default) == "v1" {
            let key = Zeroizing::new(secret("ST_KEY")?.to_owned());
            return Ok(Way::V1 { url: url("ST_AUTH")?, user: secret("ST_USER")?.to_owned(), key });
        }
        let said = |option: &str, variable: &str| address.option(option).or(secrets.get(variable)).map(str::to_owned);
        let domain = |option: &str, variable: &str| json!({ "name": said(option, variable).unwrap_or_else(|| "Default".to_owned()) });
        let mut auth = json!({ "identity": { "methods": ["password"], "password": { "user": {
            "name": secret("OS_USERNAME")?,
            "domain": domain("user-domain", "OS_USER_DOMAIN_NAME"),
            "password": secret("OS_PASSWORD")?,
        } } } });
        if let (Some(project), Some(auth)) = (said("project", "OS_PROJECT_NAME"), auth.as_object_mut()) {
            let project = json!({ "name": project, "domain": domain("project-domain", "OS_PROJECT_DOMAIN_NAME") });
            auth.insert("scope".to_owned(), json!({ "project": project }));
        }
        let body = serde_json::to_vec(&json!({ "auth": auth }))
            .map_err(|e| Error::internal("asking for a token").with_source(e))?;
        let base = url("OS_AUTH_URL")?;
        let tokens = format!("{}/auth/tokens", base.as_str().trim_end_matches('/'));
        let url = tokens.parse().map_err(|_| missing("the URL for tokens is none"))?;
        Ok(Way::V3 { url, body: Zeroizing::new(body), region: said("region", "OS_REGION_NAME") })
    }

    fn region(&self) -> Option<String> {
        match self {
            Way::V3 { region, .. } => region.clone(),
            _ => None,
        }
    }

    /// The request for a token.
    fn request(&self) -> Result<Request> {
        let header = |text: &str| {
            let mut value = http::HeaderValue::from_str(text)
                .map_err(|_| Error::invalid("a user or key that no header can hold"))?;
            value.set_sensitive(true);
            Ok::<_, Error>(value)
        };
        match self {
            Way::Ready => Err(Error::internal("a ready token is not asked for")),
            Way::V1 { url, user, key } => {
                let mut request = Request::new(Method::GET, url.clone());
                request.headers_mut().insert("x-auth-user", header(user)?);
                request.headers_mut().insert("x-auth-key", header(key)?);
                Ok(request)
            }
            Way::V3 { url, body, .. } => {
                let mut request = Request::new(Method::POST, url.clone());
                request
                    .headers_mut()
                    .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
                *request.body_mut() = Some(Bytes::from_owner(body.clone()).into());
                Ok(request)
            }
        }
    }
}

/// Asks a token server.
async fn ask(client: &Client, request: Request, region: Option<&str>) -> std::result::Result<Granted, Failure> {
    let late = |_| Failure::Wire(Wire::late(PATIENCE));
    let answered = timeout(PATIENCE, client.execute(request)).await.map_err(late)?;
    let mut response = answered.map_err(|e| Failure::Wire(Wire::from_client(e)))?;
    let mut body = Zeroizing::new(Vec::new());
    while let Some(piece) =
        timeout(PATIENCE, response.chunk()).await.map_err(late)?.map_err(|e| Failure::Wire(Wire::from_client(e)))?
    {
        if body.len() + piece.len() > ANSWER {
            break;
        }
        body.extend_from_slice(&piece);
    }
    if !response.status().is_success() {
        let mut answer = Answer { status: response.status().as_u16(), ..Answer::default() };
        answer.read_body(&String::from_utf8_lossy(&body));
        return Err(Failure::Answer(answer));
    }
    grant(&response, &body, region).ok_or_else(|| {
        let message = "the answer holds no token; is that the URL for tokens?".to_owned();
        Failure::Answer(Answer { status: response.status().as_u16(), message, ..Answer::default() })
    })
}

/// A token out of a server's answer.
fn grant(response: &Response, body: &[u8], region: Option<&str>) -> Option<Granted> {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    if let Some(token) = header("x-subject-token") {
        let json: Value = serde_json::from_slice(body).ok()?;
        let granted = json.get("token")?;
        let time = |name: &str| granted.get(name)?.as_str()?.parse::<jiff::Timestamp>().ok();
        let life = time("expires_at").zip(time("issued_at")).map(|(end, begin)| end.duration_since(begin));
        return Some(Granted {
            token: Arc::new(Zeroizing::new(token)),
            storage_url: storage_url(granted, region),
            life: life.and_then(|life| Duration::try_from(life).ok()),
        });
    }
    Some(Granted {
        token: Arc::new(Zeroizing::new(header("x-auth-token")?)),
        storage_url: header("x-storage-url"),
        life: header("x-auth-token-expires").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs),
    })
}

/// The public URL of the object store in a catalog, in the region that was named or in the first.
fn storage_url(granted: &Value, region: Option<&str>) -> Option<String> {
    let services = granted.get("catalog")?.as_array()?;
    let stores = services.iter().filter(|service| service.get("type").and_then(Value::as_str) == Some("object-store"));
    let endpoints = stores.filter_map(|service| service.get("endpoints")?.as_array()).flatten();
    let text = |endpoint: &Value, name: &str| endpoint.get(name).and_then(Value::as_str).map(str::to_owned);
    endpoints
        .filter(|endpoint| text(endpoint, "interface").as_deref() == Some("public"))
        .find(|endpoint| region.is_none() || text(endpoint, "region").as_deref() == region)
        .and_then(|endpoint| text(endpoint, "url"))
}

/// When a token of that life is renewed: after four fifths of it.
fn renewal(life: Option<Duration>) -> Option<Instant> {
    life.and_then(|life| Instant::now().checked_add(life / 5 * 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::address::Address;

    fn way(options: &[&str], secrets: &str) -> Result<Way> {
        let options: Vec<_> = options.iter().map(|text| crate::backend::address::parse_option(text).unwrap()).collect();
        let Address::Object(address) = Address::parse("swift://c/p", &options)? else { panic!("a folder") };
        Way::choose(&address, &Secrets::parse(address.scheme(), secrets)?)
    }

    #[test]
    fn the_way_is_known_by_what_is_there() {
        let v1 = way(&["auth-url=http://h/auth/v1.0"], "ST_USER=a:b\nST_KEY=hunter2").unwrap();
        let request = v1.request().unwrap();
        assert_eq!((request.method(), request.url().as_str()), (&Method::GET, "http://h/auth/v1.0"));
        assert_eq!(request.headers()["x-auth-key"], "hunter2");
        assert!(!format!("{request:?}").contains("hunter2"));

        let secrets = "OS_AUTH_URL=http://h/v3/\nOS_USERNAME=u\nOS_PASSWORD=hunter2\nOS_PROJECT_NAME=p";
        let v3 = way(&["user-domain=d", "region=r"], secrets).unwrap();
        let request = v3.request().unwrap();
        assert_eq!((request.method(), request.url().as_str()), (&Method::POST, "http://h/v3/auth/tokens"));
        let body: Value = serde_json::from_slice(request.body().unwrap().as_bytes().unwrap()).unwrap();
        assert_eq!(body["auth"]["identity"]["password"]["user"]["domain"]["name"], "d");
        assert_eq!(body["auth"]["scope"]["project"]["domain"]["name"], "Default");
        assert_eq!(v3.region().as_deref(), Some("r"));

        assert!(matches!(way(&[], "OS_AUTH_TOKEN=t\nOS_STORAGE_URL=http://h/x"), Ok(Way::Ready)));
        for (secrets, word) in
            [("ST_USER=u", "ST_KEY"), ("ST_USER=u\nST_KEY=k", "auth-url"), ("OS_PASSWORD=p", "OS_USERNAME")]
        {
            let error = way(&[], secrets).err().unwrap();
            assert!(error.context().contains(word), "{error}");
        }
    }

    #[test]
    fn the_catalog_is_searched_by_region() {
        let endpoint =
            |interface: &str, region: &str, url: &str| json!({"interface": interface, "region": region, "url": url});
        let token = json!({"catalog": [
            {"type": "compute", "endpoints": [endpoint("public", "a", "http://no")]},
            {"type": "object-store", "endpoints": [
                endpoint("internal", "a", "http://inside"), endpoint("public", "a", "http://a"), endpoint("public", "b", "http://b"),
            ]},
        ]});
        assert_eq!(storage_url(&token, None).as_deref(), Some("http://a"));
        assert_eq!(storage_url(&token, Some("b")).as_deref(), Some("http://b"));
        assert_eq!(storage_url(&token, Some("c")), None);
        assert_eq!(storage_url(&json!({"catalog": 1}), None), None);
    }
}

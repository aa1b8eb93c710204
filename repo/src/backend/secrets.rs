//! What proves to an object store who we are: named texts, as the program read them from a file or its variables.
//!
//! ```text
//!   -o secret-file=FILE:  AWS_ACCESS_KEY_ID=...            the same names as in the environment, one a line; lines that begin
//!                         AWS_SECRET_ACCESS_KEY=...        with '#' say nothing. For gcs the service account's JSON as it comes
//! ```
//! Not here: reading files and variables (the program's matter), what becomes of them ([`super::object`]). What holds: they are
//! wiped from memory when they go, and shown nowhere: `Debug` and errors have names only.

use super::address::Scheme;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use zeroize::Zeroizing;

/// A Google service account as JSON, where a file holds nothing else.
pub const GOOGLE_JSON: &str = "GOOGLE_CREDENTIALS";

/// The names that count for a kind of store, in files and in the environment alike.
#[must_use]
pub fn names(scheme: Scheme) -> &'static [&'static str] {
    match scheme {
        Scheme::S3 => &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"],
        Scheme::Azblob => &["AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"],
        Scheme::Gcs => &["GOOGLE_APPLICATION_CREDENTIALS", GOOGLE_JSON],
        Scheme::Swift => &[
            "OS_AUTH_URL",
            "OS_USERNAME",
            "OS_PASSWORD",
            "OS_PROJECT_NAME",
            "OS_USER_DOMAIN_NAME",
            "OS_PROJECT_DOMAIN_NAME",
            "OS_REGION_NAME",
            "OS_STORAGE_URL",
            "OS_AUTH_TOKEN",
            "ST_AUTH",
            "ST_USER",
            "ST_KEY",
        ],
        Scheme::Oss => {
            &["ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN"]
        }
        Scheme::Cos => &["TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY", "TENCENTCLOUD_SECURITY_TOKEN"],
        Scheme::B2 => &["B2_APPLICATION_KEY_ID", "B2_APPLICATION_KEY"],
        Scheme::Webdav => &["WEBDAV_USERNAME", "WEBDAV_PASSWORD", "WEBDAV_TOKEN"],
        Scheme::Sftp => &[],
    }
}

/// Named secrets of one store. The default is none: then the provider's own chain is asked where there is one.
#[derive(Clone, Default)]
pub struct Secrets(BTreeMap<&'static str, Zeroizing<String>>);

impl Secrets {
    /// Those of these names that `read` knows.
    pub fn gather(scheme: Scheme, read: impl Fn(&str) -> Option<Zeroizing<String>>) -> Secrets {
        let found =
            names(scheme).iter().filter_map(|name| Some((*name, read(name).filter(|value| !value.is_empty())?)));
        Secrets(found.collect())
    }

    /// Reads a file of them. `Invalid`: a line that is none, or a name that does not count for this kind of store; values are
    /// never repeated.
    pub fn parse(scheme: Scheme, text: &str) -> Result<Secrets> {
        if scheme == Scheme::Gcs && text.trim_start().starts_with('{') {
            return Ok(Secrets(BTreeMap::from([(GOOGLE_JSON, Zeroizing::new(text.trim().to_owned()))])));
        }
        let mut found = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let known = names(scheme);
            let (name, value) = line.split_once('=').ok_or_else(|| {
                Error::invalid(format!("line {number} is not NAME=VALUE; names are {}", listed(known)))
            })?;
            let name = name.trim();
            let name = known.iter().find(|known| known.eq_ignore_ascii_case(name)).ok_or_else(|| {
                Error::invalid(format!(
                    "the name in line {number} is none that {}:// knows: {}",
                    scheme.name(),
                    listed(known)
                ))
            })?;
            let value = value.trim();
            let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            found.insert(*name, Zeroizing::new(value.to_owned()));
        }
        if found.is_empty() {
            return Err(Error::invalid(format!(
                "it holds no secret; write NAME=VALUE with the names {}",
                listed(names(scheme))
            )));
        }
        Ok(Secrets(found))
    }

    /// The one of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.as_str())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none: ssh has its own".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_names_and_values() {
        let text = "# ours\n\nAWS_ACCESS_KEY_ID = AK=1\naws_secret_access_key=\"s3cr3t\"\r\n";
        let secrets = Secrets::parse(Scheme::S3, text).unwrap();
        assert_eq!(secrets.get("AWS_ACCESS_KEY_ID"), Some("AK=1"));
        assert_eq!(secrets.get("AWS_SECRET_ACCESS_KEY"), Some("s3cr3t"));
        assert_eq!(secrets.get("AWS_SESSION_TOKEN"), None);
        let json = Secrets::parse(Scheme::Gcs, " {\"type\": 1}\n").unwrap();
        assert_eq!(json.get(GOOGLE_JSON), Some("{\"type\": 1}"));
    }

    #[test]
    fn nothing_shows_a_value() {
        let secrets = Secrets::parse(Scheme::S3, "AWS_SECRET_ACCESS_KEY=hunter2").unwrap();
        let shown = format!("{secrets:?}");
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hunter2"), "{shown}");
        for bad in ["hunter2", "NAME=hunter2", "hunter2=1\n", "", "# only this"] {
            let error = Secrets::parse(Scheme::S3, bad).unwrap_err();
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
            assert!(error.context().contains("AWS_ACCESS_KEY_ID"), "{error}");
        }
    }

    #[test]
    fn variables_count_when_they_say_something() {
        let read = |name: &str| match name {
            "B2_APPLICATION_KEY_ID" => Some(Zeroizing::new("id".to_owned())),
            "B2_APPLICATION_KEY" => Some(Zeroizing::new(String::new())),
            other => panic!("{other} was asked for"),
        };
        let secrets = Secrets::gather(Scheme::B2, read);
        assert_eq!((secrets.get("B2_APPLICATION_KEY_ID"), secrets.get("B2_APPLICATION_KEY")), (Some("id"), None));
        assert!(!secrets.is_empty() && Secrets::default().is_empty());
    }
}

//! From an address and secrets to OpenDAL's service for that kind of store.
//!
//! | scheme | credentials, in this order | create-only puts |
//! |---|---|---|
//! | s3 | secrets; else the AWS chain (profile, container, instance) | `If-None-Match`, also when a multipart upload completes |
//! | azblob | secrets: key or SAS; else the Azure chain | `If-None-Match` on the blob and on the list of blocks |
//! | gcs | secrets; else Google's chain | `ifGenerationMatch=0`, also for resumable uploads |
//! | oss, cos | secrets; else the provider's chain | `x-oss-forbid-overwrite`, `x-cos-forbid-overwrite` |
//! | sftp | ssh's own | none: a draft that is renamed, which replaces: weak |
//! | swift, webdav | secrets | `If-None-Match: *`, which not every server keeps: weak |
//! | b2 | secrets | none: weak |
//!
//! Not here: requests ([`super::transport`]), Swift's tokens ([`super::swift`]). What holds: secrets that were named hide the
//! provider's chain; nothing is read from variables behind the program's back, except by that chain.

use super::swift;
use crate::backend::address::{ObjectAddress, Scheme};
use crate::backend::secrets::{GOOGLE_JSON, Secrets};
use crate::error::{Error, Result};
use opendal::{Operator, services};

/// What a request for an S3 bucket says when nobody named a region and the endpoint is not Amazon's.
const ANY_REGION: &str = "us-east-1";

/// Makes the service, which puts objects with this storage class; nothing is asked of the store.
pub(super) fn build(
    address: &ObjectAddress,
    secrets: &Secrets,
    swift: Option<&swift::Account>,
    class: Option<&str>,
) -> Result<Operator> {
    let root = format!("/{}/", address.prefix());
    let built = match address.scheme() {
        Scheme::S3 => Operator::new(s3(address, secrets, &root, class)?),
        Scheme::Azblob => Operator::new(azblob(address, secrets, &root)?),
        Scheme::Gcs => Operator::new(gcs(address, secrets, &root, class)),
        Scheme::Swift => {
            let account = swift.ok_or_else(|| Error::internal("no Swift account was opened"))?;
            let service = services::Swift::default().endpoint(account.storage_url()).container(address.place());
            // The transport puts the token that is valid then into every request.
            Operator::new(service.root(&root).token("token"))
        }
        Scheme::Oss => {
            let id = secrets.get("ALIBABA_CLOUD_ACCESS_KEY_ID").zip(secrets.get("ALIBABA_CLOUD_ACCESS_KEY_SECRET"));
            let mut service = services::Oss::default().bucket(address.place()).root(&root).endpoint(endpoint(address)?);
            if let Some((id, secret)) = id {
                service = service.access_key_id(id).access_key_secret(secret);
            }
            if let Some(token) = secrets.get("ALIBABA_CLOUD_SECURITY_TOKEN") {
                service = service.security_token(token);
            }
            Operator::new(service)
        }
        Scheme::Cos => {
            let id = secrets.get("TENCENTCLOUD_SECRET_ID").zip(secrets.get("TENCENTCLOUD_SECRET_KEY"));
            let mut service = services::Cos::default().bucket(address.place()).root(&root).endpoint(endpoint(address)?);
            if let Some((id, secret)) = id {
                service = service.secret_id(id).secret_key(secret).disable_config_load();
            }
            if let Some(token) = secrets.get("TENCENTCLOUD_SECURITY_TOKEN") {
                service = service.security_token(token);
            }
            Operator::new(service)
        }
        Scheme::B2 => {
            let bucket_id = address.option("bucket-id").ok_or_else(|| {
                Error::invalid(format!("{address}: say -o bucket-id=ID; B2 shows it beside the bucket's name"))
            })?;
            let (id, key) = (
                required(address, secrets, "B2_APPLICATION_KEY_ID")?,
                required(address, secrets, "B2_APPLICATION_KEY")?,
            );
            let service = services::B2::default().bucket(address.place()).bucket_id(bucket_id).root(&root);
            Operator::new(service.application_key_id(id).application_key(key))
        }
        Scheme::Webdav => {
            let protocol = address.option("protocol").unwrap_or("https");
            let mut service =
                services::Webdav::default().endpoint(&format!("{protocol}://{}", address.place())).root(&root);
            if let Some(token) = secrets.get("WEBDAV_TOKEN") {
                service = service.token(token);
            } else if let Some(user) = secrets.get("WEBDAV_USERNAME") {
                service = service.username(user).password(required(address, secrets, "WEBDAV_PASSWORD")?);
            }
            Operator::new(service)
        }
        Scheme::Sftp => {
            let (user, host) =
                address.place().split_once('@').map_or((None, address.place()), |(user, host)| (Some(user), host));
            let mut service = services::Sftp::default().endpoint(&format!("ssh://{host}")).root(&root);
            if let Some(user) = user {
                service = service.user(user);
            }
            if let Some(file) = address.option("identity-file") {
                service = service.key(file);
            }
            Operator::new(service.known_hosts_strategy(address.option("known-hosts").unwrap_or("strict")))
        }
    };
    built.map_err(|e| super::failure::of_opendal(&e, &address.to_string()))
}

/// Where an S3 store's buckets are.
pub(super) struct S3Site {
    pub(super) region: String,
    /// Without the bucket.
    pub(super) endpoint: String,
    /// The bucket is in the host's name, and not in the path.
    pub(super) is_virtual: bool,
}

pub(super) fn s3_site(address: &ObjectAddress, secrets: &Secrets) -> Result<S3Site> {
    let region = match (address.option("region").or(secrets.get("AWS_REGION")), address.option("endpoint")) {
        (Some(region), _) => region,
        (None, Some(_)) => ANY_REGION,
        (None, None) => {
            let why =
                "say -o region=REGION for Amazon S3, or -o endpoint=URL for another store that speaks its protocol";
            return Err(Error::invalid(format!("{address}: {why}")));
        }
    };
    let amazon = format!("https://s3.{region}.amazonaws.com");
    // Amazon has the bucket in the host's name, and most others in the path.
    let default_style = if address.option("endpoint").is_some() { "path" } else { "virtual" };
    Ok(S3Site {
        region: region.to_owned(),
        endpoint: address.option("endpoint").map_or(amazon, str::to_owned),
        is_virtual: address.option("style").unwrap_or(default_style) == "virtual",
    })
}

fn s3(address: &ObjectAddress, secrets: &Secrets, root: &str, class: Option<&str>) -> Result<services::S3> {
    let site = s3_site(address, secrets)?;
    let mut service = services::S3::default().bucket(address.place()).root(root).region(&site.region);
    // With it OpenDAL looks for no endpoint in variables.
    service = service.endpoint(&site.endpoint);
    if site.is_virtual {
        service = service.enable_virtual_host_style();
    }
    if let Some(class) = class {
        service = service.default_storage_class(class);
    }
    if let Some(checksum) = address.option("checksum") {
        service = service.checksum_algorithm(checksum);
    }
    if let Some(role) = address.option("role") {
        service = service.role_arn(role);
    }
    if let Some(profile) = address.option("profile") {
        service = service.profile(profile);
    }
    if address.is_on("anonymous", false) {
        return Ok(service.skip_signature());
    }
    if let Some(id) = secrets.get("AWS_ACCESS_KEY_ID") {
        service = service.access_key_id(id).secret_access_key(required(address, secrets, "AWS_SECRET_ACCESS_KEY")?);
        if let Some(token) = secrets.get("AWS_SESSION_TOKEN") {
            service = service.session_token(token);
        }
        service = service.disable_config_load().disable_ec2_metadata();
    }
    Ok(service)
}

fn azblob(address: &ObjectAddress, secrets: &Secrets, root: &str) -> Result<services::Azblob> {
    let account = address
        .option("account")
        .or(secrets.get("AZURE_STORAGE_ACCOUNT"))
        .ok_or_else(|| Error::invalid(format!("{address}: say -o account=NAME, or set AZURE_STORAGE_ACCOUNT")))?;
    let microsoft = format!("https://{account}.blob.core.windows.net");
    let mut service = services::Azblob::default().container(address.place()).root(root).account_name(account);
    service = service.endpoint(address.option("endpoint").unwrap_or(&microsoft));
    if address.is_on("anonymous", false) {
        return Ok(service.skip_signature());
    }
    if let Some(key) = secrets.get("AZURE_STORAGE_KEY") {
        service = service.account_key(key);
    } else if let Some(sas) = secrets.get("AZURE_STORAGE_SAS_TOKEN") {
        service = service.sas_token(sas.trim_start_matches('?'));
    }
    Ok(service)
}

fn gcs(address: &ObjectAddress, secrets: &Secrets, root: &str, class: Option<&str>) -> services::Gcs {
    let mut service = services::Gcs::default().bucket(address.place()).root(root);
    if let Some(endpoint) = address.option("endpoint") {
        service = service.endpoint(endpoint);
    }
    if let Some(class) = class {
        service = service.default_storage_class(class);
    }
    if address.is_on("anonymous", false) {
        return service.skip_signature();
    }
    if let Some(json) = secrets.get(GOOGLE_JSON) {
        service = service.credential(&base64(json.as_bytes())).disable_vm_metadata().disable_config_load();
    } else if let Some(path) = secrets.get("GOOGLE_APPLICATION_CREDENTIALS") {
        service = service.credential_path(path).disable_vm_metadata().disable_config_load();
    }
    service
}

fn endpoint(address: &ObjectAddress) -> Result<&str> {
    address.option("endpoint").ok_or_else(|| {
        let example = match address.scheme() {
            Scheme::Oss => "https://oss-cn-beijing.aliyuncs.com",
            _ => "https://cos.ap-singapore.myqcloud.com",
        };
        Error::invalid(format!("{address}: say -o endpoint=URL, as in {example}"))
    })
}

pub(super) fn required<'a>(address: &ObjectAddress, secrets: &'a Secrets, name: &str) -> Result<&'a str> {
    secrets.get(name).ok_or_else(|| {
        Error::invalid(format!(
            "{address}: {name} is missing; put it into the file of -o secret-file=FILE, or into the environment"
        ))
    })
}

/// Base64, in which OpenDAL takes a Google credential, and S3 a checksum.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: [char; 64] = {
        let mut letters = ['A'; 64];
        let mut at = 0;
        while at < 64 {
            letters[at] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[at] as char;
            at += 1;
        }
        letters
    };
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let letter = (bits >> (18 - 6 * place) & 63) as usize;
            text.push(if place <= group.len() { ALPHABET.get(letter).copied().unwrap_or('=') } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::address::Address;

    #[test]
    fn base64_is_base64() {
        for (plain, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy"), ("\u{3fff}", "47+/")]
        {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }

    fn built(location: &str, options: &[(&str, &str)], secrets: &str) -> Result<Operator> {
        let options: Vec<_> = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let Address::Object(address) = Address::parse(location, &options)? else { panic!("a folder") };
        let secrets = if secrets.is_empty() { Secrets::default() } else { Secrets::parse(address.scheme(), secrets)? };
        build(&address, &secrets, None, address.option("storage-class"))
    }

    #[test]
    fn what_is_missing_is_named() {
        let missing = [
            ("s3://b", &[][..], "", "region"),
            ("s3://b", &[("region", "r")], "AWS_ACCESS_KEY_ID=x", "AWS_SECRET_ACCESS_KEY"),
            ("azblob://c", &[], "", "account"),
            ("oss://b", &[], "", "endpoint"),
            ("cos://b", &[], "", "endpoint"),
            ("b2://b", &[], "", "bucket-id"),
            ("b2://b", &[("bucket-id", "1")], "B2_APPLICATION_KEY=x", "B2_APPLICATION_KEY_ID"),
            ("webdav://h/x", &[], "WEBDAV_USERNAME=u", "WEBDAV_PASSWORD"),
        ];
        for (location, options, secrets, word) in missing {
            let error = built(location, options, secrets).err().unwrap();
            assert_eq!(error.kind(), crate::Kind::Invalid, "{error}");
            assert!(error.context().contains(word), "{error}");
        }
    }

    #[test]
    fn every_store_is_built_without_asking_it() {
        let complete = [
            ("s3://b/p", &[("endpoint", "http://h:1"), ("style", "virtual"), ("checksum", "crc32c")][..], ""),
            ("s3://b", &[("region", "eu-1"), ("role", "arn:aws:iam::1:role/x"), ("storage-class", "STANDARD_IA")], ""),
            ("azblob://c/p", &[("account", "a")], "AZURE_STORAGE_KEY=a2V5"),
            ("azblob://c/p", &[("account", "a"), ("anonymous", "yes")], ""),
            ("gcs://b/p", &[("anonymous", "yes"), ("endpoint", "http://h:1")], ""),
            ("oss://b", &[("endpoint", "https://oss-cn-beijing.aliyuncs.com")], ""),
            ("cos://b", &[("endpoint", "https://cos.ap-singapore.myqcloud.com")], ""),
            ("b2://b", &[("bucket-id", "1")], "B2_APPLICATION_KEY=x\nB2_APPLICATION_KEY_ID=y"),
            ("webdav://h:80/x", &[("protocol", "http")], ""),
            ("sftp://me@h:22/x", &[("known-hosts", "add")], ""),
        ];
        for (location, options, secrets) in complete {
            let operator = built(location, options, secrets).unwrap_or_else(|e| panic!("{location}: {e}"));
            assert!(operator.info().capability().write, "{location}");
        }
    }
}

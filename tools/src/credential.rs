//! Passphrases and key files, from where they are to the repository room.
//!
//! Not here: what they open. What holds: a secret comes from a file or the terminal, never from an argument or a variable; it
//! is wiped from memory after use and is part of no message; a key file is made for its owner alone, replaces nothing, and
//! does not stay when what it was made for failed.

use crate::exit::{Failure, Result, wrong_use};
use crate::settings::Opener;
use coffer_repo::crypto::Secret;
use coffer_repo::entropy::Entropy;
use coffer_repo::key_slot::{Credential, key_file};
use coffer_repo::{Error, Kind};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// No password or key file is longer.
const LONGEST: u64 = 4096;

/// How a credential is made that shall open the repository from now on.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct NewCredential {
    /// Take the new passphrase from this file. Without it, it is asked for twice on the terminal
    #[arg(long, value_name = "FILE", conflicts_with = "new_key_file")]
    new_password_file: Option<PathBuf>,

    /// Make a key file here instead of asking for a passphrase; it must not exist
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,
}

/// A credential that is about to be given a slot, and the key file that was made for it, if one was.
pub(crate) type Prepared = (Credential, NewFile);

/// A key file that goes again unless it is kept.
#[derive(Debug, Default)]
pub(crate) struct NewFile(Option<PathBuf>);

/// The credential of an existing slot.
pub(crate) fn obtain(opener: &Opener) -> Result<Credential> {
    match opener {
        Opener::PasswordFile(path) => read_passphrase(path),
        Opener::KeyFile(path) => {
            let text = read_secret(path, "key file")?;
            Credential::from_key_file(&text).map_err(|e| e.within(format!("key file {}", path.display())).into())
        }
        Opener::Question => Ok(Credential::Passphrase(ask("Passphrase: ")?)),
    }
}

impl NewCredential {
    /// Whether anything was said, and not left to a question.
    pub(crate) fn is_given(&self) -> bool {
        self.new_password_file.is_some() || self.new_key_file.is_some()
    }

    /// Reads, makes or asks for it.
    pub(crate) fn prepare(&self, entropy: &dyn Entropy) -> Result<Prepared> {
        match (&self.new_password_file, &self.new_key_file) {
            (_, Some(path)) => make_key_file(path, entropy),
            (Some(path), None) => Ok((read_passphrase(path)?, NewFile::default())),
            (None, None) => {
                let passphrase = ask("New passphrase: ")?;
                if ask("The same again: ")? != passphrase {
                    return Err(Error::invalid("the two passphrases differ; nothing was changed").into());
                }
                Ok((Credential::Passphrase(passphrase), NewFile::default()))
            }
        }
    }
}

impl NewFile {
    /// What the file opens exists now, so it stays. Its path, if there is one.
    pub(crate) fn keep(mut self) -> Option<PathBuf> {
        self.0.take()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // It opens nothing; that it stays harms nobody.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn read_passphrase(path: &Path) -> Result<Credential> {
    let mut text = read_secret(path, "password file")?;
    let line = text.strip_suffix('\n').map_or(text.len(), |line| line.strip_suffix('\r').unwrap_or(line).len());
    text.truncate(line);
    if text.is_empty() {
        return Err(Error::invalid(format!("password file {} is empty", path.display())).into());
    }
    Ok(Credential::Passphrase(text))
}

/// Reads text that nobody else should know.
pub(crate) fn read_secret(path: &Path, what: &str) -> Result<Zeroizing<String>> {
    let bytes = read_bytes(path, what)?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(Error::invalid(format!("{what} {} is not UTF-8 text", path.display())).into()),
    }
}

/// Reads what nobody else should know, and leaves no copies behind.
pub(crate) fn read_bytes(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>> {
    let title = || format!("{what} {}", path.display());
    // Room for all of it at once: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(LONGEST).unwrap_or_default() + 64));
    let read = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    let length = read.map_err(|e| Error::io(format!("reading {}", title()), e))? as u64;
    if length > LONGEST {
        return Err(Error::invalid(format!("{} is longer than {LONGEST} bytes", title())).into());
    }
    Ok(bytes)
}

fn make_key_file(path: &Path, entropy: &dyn Entropy) -> Result<Prepared> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            let why = format!("{} exists; a key file never replaces another file, choose another name", path.display());
            Error::invalid(why)
        }
        _ => Error::io(format!("making key file {}", path.display()), e),
    };
    let key = Secret::random(entropy)?;
    let text = key_file(&key)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let made = NewFile(Some(path.to_owned()));
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    // The only copy of a key: its name has to outlive a power cut as well.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok((Credential::KeyFile(key), made))
}

/// Asks on the terminal, without echo.
fn ask(question: &str) -> Result<Zeroizing<String>> {
    match rpassword::prompt_password(question) {
        Ok(text) if text.is_empty() => Err(Error::new(Kind::Cancelled, "no passphrase was given").into()),
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(e) => Err(no_terminal(&e)),
    }
}

fn no_terminal(error: &std::io::Error) -> Failure {
    wrong_use(format!(
        "there is no terminal to ask for a passphrase on ({error}); say --password-file FILE or --key-file FILE, or set \
         COFFER_PASSWORD_FILE or COFFER_KEY_FILE"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use coffer_repo::entropy::Seeded;
    use std::os::unix::fs::PermissionsExt;

    fn passphrase(bytes: &[u8]) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        std::fs::write(&path, bytes).unwrap();
        match obtain(&Opener::PasswordFile(path))? {
            Credential::Passphrase(text) => Ok(text.to_string()),
            Credential::KeyFile(_) => panic!("a key"),
        }
    }

    #[test]
    fn a_passphrase_loses_its_line_end_and_nothing_else() {
        for (bytes, text) in [("a b\n", "a b"), ("a\r\n", "a"), (" a ", " a "), ("a\n\n", "a\n"), ("\u{e9}", "\u{e9}")]
        {
            assert_eq!(passphrase(bytes.as_bytes()).unwrap(), text);
        }
        for bytes in [&b""[..], b"\n", b"\xff\n", &[b'x'; 5000]] {
            assert!(passphrase(bytes).is_err());
        }
    }

    #[test]
    fn a_key_file_is_private_opens_and_goes_with_what_failed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let (_, made) = make_key_file(&path, &Seeded::new(1)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(obtain(&Opener::KeyFile(path.clone())).unwrap(), Credential::KeyFile(_)));
        assert!(make_key_file(&path, &Seeded::new(2)).is_err());
        assert!(path.exists());
        drop(made);
        assert!(!path.exists());

        let (_, made) = make_key_file(&path, &Seeded::new(3)).unwrap();
        assert_eq!(made.keep(), Some(path.clone()));
        assert!(path.exists());
    }
}

//! The record of a running writer: an economy for collectors, which leave its packs alone, and never a safety argument.
//!
//! Not here: anything that a reader or a commit looks at. What holds: a session that cannot be written or removed does not
//! fail a backup; one whose process died stays behind, and the janitor removes it.

use crate::cbor::Map;
use crate::entropy::fresh;
use crate::error::Result;
use crate::id::RecordId;
use crate::repository::Repository;
use crate::sealed::ObjectKind;
use crate::snapshot::Identity;
use std::sync::Arc;

pub(crate) struct Session {
    repo: Arc<Repository>,
    name: Option<String>,
}

impl Session {
    /// Announces a writer; a dry run announces nothing.
    pub(crate) fn begin(repo: &Arc<Repository>, identity: &Identity, workload: &str, dry_run: bool) -> Result<Self> {
        let mut session = Session { repo: Arc::clone(repo), name: None };
        if !dry_run {
            let name = format!("sessions/{}-{:08x}", RecordId(fresh(repo.entropy())?), 0);
            let body = Map::new()
                .with("host", identity.host.as_str())
                .with("program", identity.program.as_str())
                .with("workload", workload)
                .encode()?;
            let _ = repo.put_record(ObjectKind::Session, &name, &body)?;
            session.name = Some(name);
        }
        Ok(session)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            let _ = self.repo.backend().delete(&name);
        }
    }
}

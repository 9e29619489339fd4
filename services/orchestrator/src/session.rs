//! The session's name, in memory and across restarts.

use std::{io, path::PathBuf};

use uuid::Uuid;

/// The session that this orchestrator has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) generation: i64,
}

/// Keeps the id of the open session, so that the next start can close it (R2). A file that cannot be read or written
/// costs only that: the old session then ends with its lease.
#[derive(Debug)]
pub(crate) struct SessionFile(Option<PathBuf>);

impl SessionFile {
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self(path)
    }

    /// The session of an earlier start that did not end in order.
    pub(crate) async fn load(&self) -> Option<String> {
        let path = self.0.as_ref()?;
        let text = match tokio::fs::read_to_string(path).await {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "previous session's file cannot be read");
                return None;
            }
        };
        let id = text.trim().to_owned();
        if Uuid::try_parse(&id).is_err() {
            tracing::warn!(path = %path.display(), "previous session's file holds no session id");
            return None;
        }
        Some(id)
    }

    pub(crate) async fn store(&self, id: &str) {
        let Some(path) = &self.0 else { return };
        // Renamed into place, so that a crash leaves the old id or the new one.
        let mut unfinished = path.clone().into_os_string();
        unfinished.push(".new");
        let written = async {
            tokio::fs::write(&unfinished, id).await?;
            tokio::fs::rename(&unfinished, path).await
        };
        if let Err(error) = written.await {
            tracing::warn!(path = %path.display(), %error, "session's file cannot be written");
        }
    }

    pub(crate) async fn clear(&self) {
        let Some(path) = &self.0 else { return };
        match tokio::fs::remove_file(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "session's file cannot be removed");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn r2_the_session_of_an_earlier_start_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = SessionFile::new(Some(dir.path().join("session")));
        assert_eq!(file.load().await, None);
        let id = Uuid::from_u128(5).to_string();
        file.store(&id).await;
        assert_eq!(file.load().await, Some(id));
        file.store("nonsense").await;
        assert_eq!(file.load().await, None);
        file.clear().await;
        file.clear().await;
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

//! Ends the daemon when its configuration file changes, for the supervisor to start it with the new one (SY-18).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A task that ends with an error once the text of `file` changes. A mounted ConfigMap swaps a link beside the file, so
/// the task watches the whole folder and compares the text.
pub(crate) fn until_changed(file: PathBuf, stop: CancellationToken) -> Result<impl Future<Output = Result<()>>> {
    let (outbox, mut inbox) = mpsc::channel(1);
    let mut watcher = watcher(outbox).context("watching the configuration file")?;
    let folder = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let watched = watcher.watch(folder, RecursiveMode::NonRecursive);
    watched.with_context(|| format!("watching {} for changes of the configuration", folder.display()))?;
    let before = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    Ok(async move {
        let _watcher = watcher;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                event = inbox.recv() => if event.is_none() {
                    bail!("the watch of {} ended", file.display());
                },
            }
            // A file that is away for a moment is being replaced.
            if std::fs::read(&file).is_ok_and(|now| now != before) {
                bail!("{} has changed; start again to use it", file.display());
            }
        }
    })
}

fn watcher(outbox: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // A full channel holds a report already.
        if event.is_ok_and(|event| !event.kind.is_access()) && outbox.try_send(()).is_err() {
            tracing::trace!("a change of the configuration's folder is known already");
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn another_text_ends_it_and_the_same_text_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.conf");
        std::fs::write(&file, "a").unwrap();
        let stop = CancellationToken::new();
        let mut watching = std::pin::pin!(until_changed(file.clone(), stop).unwrap());
        std::fs::write(&file, "a").unwrap();
        std::fs::write(folder.path().join("other"), "b").unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut watching).await.is_err());
        std::fs::write(folder.path().join("new"), "b").unwrap();
        std::fs::rename(folder.path().join("new"), &file).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(10), watching).await.unwrap().unwrap_err();
        assert!(ended.to_string().contains("has changed"), "{ended}");
    }
}

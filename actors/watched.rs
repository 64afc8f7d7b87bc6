//! Files that say who is to be believed, read again when they change or when the node is told to.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use serde::Serialize;

/// What is known of files without reading them: of each its time, size and inode, or that it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Option<(SystemTime, u64, u64)>>);

impl Stamp {
    pub(crate) fn of<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Self {
        let stamp = |path: &PathBuf| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.modified().ok()?, found.len(), found.ino()))
        };
        Self(paths.map(stamp).collect())
    }
}

/// When files are to be read again.
#[derive(Debug)]
pub(crate) struct Looks {
    /// As they were when they were read last, well or not.
    read: Stamp,
    /// At the last look, if that was another.
    moving: Option<Stamp>,
}

impl Looks {
    pub(crate) fn new(read: Stamp) -> Self {
        Self { read, moving: None }
    }

    /// Whether they are to be read: they have changed and stood still for one look, so that nobody is writing them; or what was
    /// read was not right. That may be so now, and look the same, as after a chmod.
    pub(crate) fn call_for(&mut self, stamp: Stamp, right: bool) -> bool {
        if stamp == self.read {
            self.moving = None;
            return !right;
        }
        let still = self.moving.as_ref() == Some(&stamp);
        self.moving = Some(stamp);
        still
    }
}

/// What is read from files, all of it or, if anything is wrong, what was read before. Clones are the same.
pub(crate) struct Watched<T>(Arc<Inner<T>>);

struct Inner<T> {
    paths: Vec<PathBuf>,
    read: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    what: &'static str,
    now: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
}

struct Seen {
    looks: Looks,
    report: Report,
}

/// How often files were read, and what is wrong with them now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How often changed files were taken over since the node started.
    pub reloads: u64,
    /// How often they were not, because something in them was wrong.
    pub failures: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Reads for the first time. The log calls them `what`.
    pub(crate) fn open(
        what: &'static str,
        paths: Vec<PathBuf>,
        read: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let stamp = Stamp::of(paths.iter());
        let now = RwLock::new(Arc::new(read()?));
        let seen = Mutex::new(Seen { looks: Looks::new(stamp), report: Report::default() });
        Ok(Self(Arc::new(Inner { paths, read: Box::new(read), what, now, seen })))
    }

    pub(crate) fn now(&self) -> Arc<T> {
        Arc::clone(&self.0.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn report(&self) -> Report {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner).report.clone()
    }

    /// Reads them again, changed or not. It reads files: not for an event loop.
    pub(crate) fn reload(&self) {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever asks is to hear what is wrong, though it be what was wrong before.
        seen.report.failure = None;
        self.0.read_again(&mut seen);
    }

    /// Reads them again when they have changed and stood still for one look, until nobody holds them any more.
    pub(crate) fn look_every(&self, every: Duration, runtime: &tokio::runtime::Handle) {
        let watched: Weak<Inner<T>> = Arc::downgrade(&self.0);
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(watched) = watched.upgrade() else { break };
                // The disk may be slow. A panic is its task's own, and the next look comes.
                let _ = tokio::task::spawn_blocking(move || watched.look()).await;
            }
        });
    }
}

impl<T> Inner<T> {
    fn look(&self) {
        let stamp = Stamp::of(self.paths.iter());
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let right = seen.report.failure.is_none();
        if seen.looks.call_for(stamp, right) {
            self.read_again(&mut seen);
        }
    }

    fn read_again(&self, seen: &mut Seen) {
        seen.looks = Looks::new(Stamp::of(self.paths.iter()));
        match (self.read)() {
            Ok(read) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read);
                seen.report.reloads += 1;
                seen.report.failure = None;
                tracing::info!(what = self.what, "files were read again and are in force");
            }
            Err(why) if seen.report.failure.as_ref() == Some(&why) => {}
            Err(why) => {
                tracing::error!(
                    what = self.what,
                    why,
                    "files are not right, and those before them stay in force; put it right, and they are read again"
                );
                seen.report.failures += 1;
                seen.report.failure = Some(why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn what_could_not_be_read_is_tried_again_though_it_looks_the_same_and_is_said_once() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let readable = Arc::new(AtomicBool::new(true));
        let may = Arc::clone(&readable);
        let watched = Watched::open("a test's", vec![file.path().to_owned()], move || {
            let text = std::fs::read_to_string(file.path()).map_err(|error| error.to_string())?;
            if may.load(Ordering::SeqCst) { Ok(text) } else { Err("permission denied".to_owned()) }
        })
        .expect("read");
        let path = watched.0.paths[0].clone();
        readable.store(false, Ordering::SeqCst);
        std::fs::write(&path, "new").expect("written");
        (0..9).for_each(|_| watched.0.look());
        let failed = Report { failures: 1, failure: Some("permission denied".to_owned()), ..Report::default() };
        assert_eq!((watched.report(), &**watched.now()), (failed.clone(), ""));
        watched.reload();
        assert_eq!(watched.report().failures, 2, "whoever asks is told again");
        readable.store(true, Ordering::SeqCst);
        watched.0.look();
        assert_eq!((watched.report(), &**watched.now()), (Report { reloads: 1, failures: 2, failure: None }, "new"));
        watched.0.look();
        assert_eq!(watched.report().reloads, 1, "once");
    }
}

//! Follows one resource: lists it page by page, then watches it from there, for ever.
//!
//! Not kube's own watcher, for three reasons: it does not report when a watch is open again, it continues after an
//! event that it could not read, and it never lists again when a watch is refused as too old. Because of the first an
//! outage would be reported for ever; because of the others changes would be lost.

use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncBufReadExt as _, FutureExt as _, TryStream, TryStreamExt as _};
use kube::api::{ListParams, ObjectList, WatchParams};
use kube::core::Request;
use rand::Rng as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::backoff::Backoff;
use super::client::Api;
use super::failure::{Cause, Failure};
use super::session::Session;
use super::transport::panic_text;
use super::wire::{ApiObject, Event, Metadata, Read, Wire};
use super::{Kind, KubeOptions};
use crate::key::ObjectKey;

/// Objects in a page of a list, as other clients of the API ask for.
const PAGE: u32 = 500;
/// For a page of a list, and for a watch to be opened.
const ANSWER: Duration = Duration::from_secs(60);
/// API servers send a bookmark about once a minute: a watch that says nothing for longer is dead.
const SILENCE: Duration = Duration::from_secs(150);
/// How long the API server keeps a watch open, in seconds; a random part keeps the nodes out of step.
const WATCH: std::ops::RangeInclusive<u32> = 240..=290;
/// A watch that ends sooner, without an event, is not opened again at once.
const SHORT: Duration = Duration::from_secs(1);
/// An API server that starts refuses at first what it allows, until it has read its roles.
const RESTART: Duration = Duration::from_secs(30);
/// After this many lists in a row that are older than what was seen, the cluster's store was restored from a backup.
const STALE_LISTS: u32 = 5;

/// A reflector's message about its resource.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) news: News,
}

#[derive(Debug)]
pub(super) enum News {
    /// A list begins: objects that are not in it are gone.
    Listing,
    /// An object exists; with an error if it cannot be read.
    Present(ObjectKey, Result<ApiObject, String>),
    /// An object is gone.
    Gone(ObjectKey),
    /// The list was complete.
    Listed,
    /// Changes are followed (again).
    Watching,
    /// A request failed; it will be made again.
    Failing {
        cause: Cause,
        reason: String,
        /// The API server refuses, and will refuse again.
        denied: bool,
    },
}

/// Follows one resource.
pub(super) struct Reflector<T> {
    session: Arc<Session>,
    api: Api,
    outbox: mpsc::Sender<Message>,
    backoff: Backoff,
    troubles: Troubles,
    stale: u32,
    /// The newest version seen, if versions can be compared (they are numbers, Kubernetes 1.35).
    newest: Option<u64>,
    wire: PhantomData<fn() -> T>,
}

/// What went wrong lately.
#[derive(Debug, Default)]
struct Troubles {
    /// A request for this resource has succeeded before.
    followed: bool,
    /// When the API server was last away.
    away: Option<Instant>,
    /// Since when it refuses.
    refusing: Option<Instant>,
}

impl Troubles {
    /// Notes a failure. Whether the server may be one that has just started.
    fn restarting(&mut self, cause: Cause) -> bool {
        let now = Instant::now();
        if cause == Cause::Away {
            self.away = Some(now);
        }
        let was_away = self.away.is_some_and(|at| now - at < RESTART);
        match cause {
            Cause::Denied => {
                let since = *self.refusing.get_or_insert(now);
                (self.followed || was_away) && now - since < RESTART
            }
            Cause::Credentials => was_away,
            Cause::Away | Cause::Certificate | Cause::Bug => {
                self.refusing = None;
                false
            }
        }
    }

    fn over(&mut self) {
        *self = Self { followed: true, away: self.away, refusing: None };
    }
}

/// The receiver of the messages is gone.
struct Over;

/// Why a watch ended.
enum Ended {
    /// Normally.
    Closed,
    /// History was lost, so the list counts.
    Lost(Failure),
    Failed(Failure),
}

impl<T: Wire> Reflector<T> {
    pub(super) fn new(session: Arc<Session>, outbox: mpsc::Sender<Message>) -> Self {
        let (backoff, troubles, stale, newest) = (Backoff::default(), Troubles::default(), 0, None);
        Self { api: session.api(), session, outbox, backoff, troubles, stale, newest, wire: PhantomData }
    }

    /// Runs until the receiver of the messages is gone.
    pub(super) async fn run(mut self) {
        loop {
            let failure = match AssertUnwindSafe(self.round()).catch_unwind().await {
                Ok(Ok(())) => continue,
                Ok(Err(Over)) => return,
                Err(panic) => Failure::Panicked(panic_text(panic.as_ref())),
            };
            // A view that no longer follows the cluster must not look as if it did.
            if self.failed(&failure).await.is_err() {
                return;
            }
        }
    }

    async fn round(&mut self) -> Result<(), Over> {
        match self.list().await? {
            Ok(version) => self.follow(version).await,
            Err(failure) => self.failed(&failure).await,
        }
    }

    /// All objects, and the version from which to watch.
    async fn list(&mut self) -> Result<Result<String, Failure>, Over> {
        let (label_selector, field_selector) = T::KIND.selectors(self.options());
        let mut params = ListParams { label_selector, field_selector, limit: Some(PAGE), ..ListParams::default() };
        self.tell(News::Listing).await?;
        loop {
            let ObjectList { types: _, metadata, items } = match self.page(&params).await {
                Ok(page) => page,
                Err(failure) => return Ok(Err(failure)),
            };
            for read in items {
                self.tell(present(read)).await?;
            }
            if let Some(token) = metadata.continue_.filter(|token| !token.is_empty()) {
                params.continue_token = Some(token);
                continue;
            }
            let Some(version) = metadata.resource_version.filter(|version| !version.is_empty()) else {
                return Ok(Err(Failure::NoVersion));
            };
            self.succeeded();
            self.tell(News::Listed).await?;
            return Ok(Ok(version));
        }
    }

    async fn page(&mut self, params: &ListParams) -> Result<ObjectList<Read<T>>, Failure> {
        let request = request::<T>().list(params).map_err(Failure::Request)?;
        let asked = timeout(ANSWER, self.api.client.request::<ObjectList<Read<T>>>(request));
        let page = asked.await.map_err(|_elapsed| Failure::Silent(ANSWER))??;
        // Another object with a field `items` must not empty the view.
        let wanted = format!("{}List", T::KIND.name());
        if page.types.kind != wanted {
            return Err(Failure::NotAList { wanted, found: page.types.kind });
        }
        let found = page.metadata.resource_version.as_deref().unwrap_or_default();
        if let (Some(seen), Some(version)) = (self.newest, number(found))
            && version < seen
            && self.stale < STALE_LISTS
        {
            self.stale += 1;
            return Err(Failure::Stale { found: found.to_owned(), seen: seen.to_string() });
        }
        self.stale = 0;
        self.newest = number(found);
        Ok(page)
    }

    /// Watches from `version` until the list must be read again.
    async fn follow(&mut self, mut version: String) -> Result<(), Over> {
        loop {
            let begun = Instant::now();
            let before = version.clone();
            match self.watch(&mut version).await? {
                Ended::Closed if version == before && begun.elapsed() < SHORT => {
                    sleep(self.backoff.next_delay()).await;
                }
                Ended::Closed => self.backoff.reset(),
                Ended::Lost(failure) => {
                    // Every restart of an API server does that, for each resource.
                    tracing::debug!(
                        resource = T::KIND.resource(),
                        reason = failure.explain(T::KIND.resource(), self.api.origin, false),
                        "the history of changes is lost, so everything is listed again"
                    );
                    // A server that answers so every time must not be asked without pause.
                    sleep(self.backoff.next_delay()).await;
                    return Ok(());
                }
                Ended::Failed(failure) => self.failed(&failure).await?,
            }
        }
    }

    /// One watch, with `version` kept up to date.
    async fn watch(&mut self, version: &mut String) -> Result<Ended, Over> {
        let (label_selector, field_selector) = T::KIND.selectors(self.options());
        let timeout_seconds = rand::rng().random_range(WATCH);
        let params =
            WatchParams { label_selector, field_selector, timeout: Some(timeout_seconds), ..WatchParams::default() };
        let request = match request::<T>().watch(&params, version) {
            Ok(request) => request,
            Err(error) => return Ok(Ended::Failed(Failure::Request(error))),
        };
        let client = self.api.client.clone();
        match timeout(ANSWER, client.request_stream(request)).await {
            Ok(Ok(answer)) => {
                self.succeeded();
                self.tell(News::Watching).await?;
                let mut lines = std::pin::pin!(answer.lines());
                self.read(&mut lines, version).await
            }
            Ok(Err(error)) => Ok(ended(error.into())),
            Err(_elapsed) => Ok(Ended::Failed(Failure::Silent(ANSWER))),
        }
    }

    /// Each line is an event.
    async fn read<S>(&mut self, lines: &mut S, version: &mut String) -> Result<Ended, Over>
    where
        S: TryStream<Ok = String, Error = std::io::Error> + Unpin,
    {
        loop {
            // A dead connection is silent, and one that breaks may end within a line: the next watch asks for the
            // missing events from the same version.
            let Ok(Ok(Some(line))) = timeout(SILENCE, lines.try_next()).await else { return Ok(Ended::Closed) };
            match serde_json::from_str::<Event<T>>(&line) {
                Ok(Event::Present(read)) => {
                    self.seen(version, &read.metadata.resource_version);
                    self.tell(present(read)).await?;
                }
                Ok(Event::Gone(metadata)) => {
                    self.seen(version, &metadata.resource_version);
                    self.tell(News::Gone(key(&metadata))).await?;
                }
                Ok(Event::Bookmark(metadata)) => self.seen(version, &metadata.resource_version),
                Ok(Event::Error(status)) => return Ok(ended(kube::Error::Api(status).into())),
                // The last line of a connection that broke: the next watch sends it again.
                Err(error) if error.is_eof() => return Ok(Ended::Closed),
                Err(error) => return Ok(Ended::Lost(Failure::Garbled(error))),
            }
        }
    }

    fn seen(&mut self, version: &mut String, now: &str) {
        // An event without a version still counts; the next watch begins at the last known version.
        if !now.is_empty() {
            now.clone_into(version);
            self.newest = number(now).max(self.newest);
            self.backoff.reset();
        }
    }

    fn options(&self) -> &KubeOptions {
        self.session.options()
    }

    fn succeeded(&mut self) {
        self.troubles.over();
        self.session.worked(&self.api);
    }

    /// Reports the failure, waits, and reads the credentials again for the retry.
    async fn failed(&mut self, failure: &Failure) -> Result<(), Over> {
        let (resource, url) = (T::KIND.resource(), &self.api.url);
        let restarting = self.troubles.restarting(failure.cause());
        let cause = if restarting { Cause::Away } else { failure.cause() };
        let reason = failure.explain(resource, self.api.origin, restarting);
        let mut reason = match failure.is_answer() {
            true => format!("cannot follow {resource} of {url}: {reason}"),
            false => format!("cannot follow the cluster of {url}: {reason}"),
        };
        if let Some(credentials) = self.session.complaint() {
            reason =
                format!("{reason}; and the credentials cannot be read again, so the last ones are used: {credentials}");
        }
        self.tell(News::Failing { cause, reason, denied: failure.is_denial() }).await?;
        let delay = self.backoff.next_delay();
        sleep(failure.retry_after().unwrap_or(delay).max(delay)).await;
        let elsewhere = failure.leads_elsewhere(self.api.at.is_some());
        self.api = self.session.renew(self.api.generation, elsewhere).await;
        Ok(())
    }

    async fn tell(&self, news: News) -> Result<(), Over> {
        self.outbox.send(Message { kind: T::KIND, news }).await.map_err(|_closed| Over)
    }
}

fn request<T: Wire>() -> Request {
    Request::new(format!("{}/{}", T::KIND.group(), T::KIND.resource()))
}

fn ended(failure: Failure) -> Ended {
    if failure.is_gone() { Ended::Lost(failure) } else { Ended::Failed(failure) }
}

fn key(metadata: &Metadata) -> ObjectKey {
    ObjectKey::new(metadata.namespace.as_str(), metadata.name.as_str())
}

fn present<T: Wire>(read: Read<T>) -> News {
    let Read { metadata, object } = read;
    News::Present(key(&metadata), object.map(|object| object.object(metadata.into())))
}

fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_was_away_may_refuse_for_a_moment() {
        // A role that never allowed it is told of at once.
        let mut troubles = Troubles::default();
        assert!(!troubles.restarting(Cause::Denied));
        // After an outage, or if it was allowed before, the refusal must last.
        troubles.restarting(Cause::Away);
        assert!(troubles.restarting(Cause::Denied));
        assert!(troubles.restarting(Cause::Credentials));
        sleep(RESTART).await;
        assert!(!troubles.restarting(Cause::Denied));
        assert!(!troubles.restarting(Cause::Credentials));
        troubles.over();
        assert!(troubles.restarting(Cause::Denied));
        sleep(RESTART).await;
        assert!(!troubles.restarting(Cause::Denied));
    }
}

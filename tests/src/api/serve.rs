//! Requests and their answers: lists, watches, single objects and new ones.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::{HeaderMap, Method, Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::faults::{Action, Faults, Verb};
use super::selector::Selector;
use super::store::{Gone, Page, Store};
use super::{Request, Resource};

pub(super) type Body = BoxBody<Bytes, std::io::Error>;
type Reply = Response<Body>;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Mutex<Store>,
    pub(super) faults: Faults,
    pub(super) requests: Mutex<Vec<Request>>,
    pub(super) events: Mutex<Vec<Value>>,
    pub(super) tokens: Mutex<Vec<String>>,
    pub(super) denied: Mutex<Vec<Resource>>,
    /// Moves with every change, so that watches look.
    pub(super) changed: watch::Sender<Nudge>,
}

/// Why watches wake up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Nudge {
    pub(super) version: u64,
    pub(super) bookmarks: u64,
    pub(super) dropped: u64,
}

impl Shared {
    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        locked(&self.store)
    }

    /// Wakes the watches; to be called after every change of the store.
    pub(super) fn nudge(&self) {
        let version = self.store().version();
        self.changed.send_modify(|nudge| nudge.version = version);
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request, taken apart.
struct Asked {
    resource: Resource,
    namespace: String,
    name: String,
    query: BTreeMap<String, String>,
}

impl Asked {
    fn text(&self, key: &str) -> &str {
        self.query.get(key).map_or("", String::as_str)
    }

    fn is_set(&self, key: &str) -> bool {
        matches!(self.text(key), "true" | "1")
    }
}

/// Answers one request. `Err` means that the connection breaks.
pub(super) async fn answer(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
    certified: bool,
) -> Result<Reply, std::io::Error> {
    let path = request.uri().path().to_owned();
    if matches!(path.as_str(), "/healthz" | "/livez" | "/readyz") {
        return Ok(whole(StatusCode::OK, "ok".into()));
    }
    if !certified && !has_token(&shared, request.headers()) {
        return Ok(failure(401, "Unauthorized", "Unauthorized", 0));
    }
    if path == "/version" {
        return Ok(whole(StatusCode::OK, json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0"}).to_string()));
    }
    let query = request.uri().query().unwrap_or_default();
    let Some(asked) = asked(&path, query) else {
        return Ok(failure(404, "NotFound", "the server could not find the requested resource", 0));
    };
    let verb = match (request.method(), asked.is_set("watch")) {
        (&Method::GET, true) => Verb::Watch,
        (&Method::GET, false) if asked.name.is_empty() => Verb::List,
        (&Method::GET, false) => Verb::Get,
        (&Method::POST | &Method::PATCH | &Method::PUT, _) => Verb::Create,
        _ => return Ok(failure(405, "MethodNotAllowed", "the server does not allow this method", 0)),
    };
    locked(&shared.requests).push(Request { resource: asked.resource, verb, query: query.to_owned() });
    if locked(&shared.denied).contains(&asked.resource) {
        let verb = format!("{verb:?}").to_lowercase();
        let (name, group) = (asked.resource.plural(), asked.resource.group_name());
        let what = if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") };
        let message = format!(
            "{what} is forbidden: User \"system:serviceaccount:kube-system:kube-proxy\" cannot {verb} resource \"{name}\" in API group \"{group}\" at the cluster scope"
        );
        return Ok(failure(403, "Forbidden", &message, 0));
    }
    let action = shared.faults.draw(asked.resource, verb);
    if let Some(reply) = faulty(action.as_ref()).await? {
        return Ok(reply);
    }
    let body = match verb {
        Verb::List => list(&shared, &asked, action.as_ref()),
        Verb::Watch => return Ok(watch_reply(shared, asked, action)),
        Verb::Get => get(&shared, &asked),
        Verb::Create => return create(&shared, &asked, request).await,
    };
    Ok(shaped(body, action))
}

/// Faults that leave nothing of the answer.
async fn faulty(action: Option<&Action>) -> Result<Option<Reply>, std::io::Error> {
    match action {
        Some(Action::Status { code, reason, retry_after }) => {
            Ok(Some(failure(*code, reason, "a fault of the test", *retry_after)))
        }
        Some(Action::Garbage(text)) => Ok(Some(whole(StatusCode::OK, (*text).to_owned()))),
        Some(Action::Reset) => Err(std::io::ErrorKind::ConnectionReset.into()),
        Some(Action::Stall) => {
            // Bounded, as everything here; no client waits that long.
            tokio::time::sleep(Duration::from_secs(600)).await;
            Err(std::io::ErrorKind::TimedOut.into())
        }
        Some(_) | None => Ok(None),
    }
}

fn has_token(shared: &Shared, headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    locked(&shared.tokens).iter().any(|token| token == given)
}

fn asked(path: &str, query: &str) -> Option<Asked> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, "v1", rest @ ..] => (*group, rest),
        _ => return None,
    };
    let (namespace, plural, name) = match rest {
        ["namespaces", namespace, plural, name] => (*namespace, *plural, *name),
        ["namespaces", namespace, plural] => (*namespace, *plural, ""),
        [plural, name] => ("", *plural, *name),
        [plural] => ("", *plural, ""),
        _ => return None,
    };
    let resource = Resource::ALL.into_iter().find(|one| one.plural() == plural && one.serves(group))?;
    let query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    Some(Asked { resource, namespace: namespace.to_owned(), name: name.to_owned(), query })
}

fn selector(asked: &Asked) -> anyhow::Result<Selector> {
    Selector::parse(asked.text("labelSelector"), asked.text("fieldSelector"))
}

fn list(shared: &Shared, asked: &Asked, action: Option<&Action>) -> (StatusCode, Value) {
    let selector = match selector(asked) {
        Ok(selector) => selector,
        Err(error) => return status(400, "BadRequest", &error.to_string(), 0),
    };
    let limit = asked.text("limit").parse().unwrap_or(0);
    let page = if matches!(action, Some(Action::StaleList)) {
        Ok(shared.store().earlier(asked.resource, &selector))
    } else {
        shared.store().list(asked.resource, &asked.namespace, &selector, limit, asked.text("continue"))
    };
    match page {
        Ok(Page { version, items, token, remaining }) => {
            let mut metadata = json!({"resourceVersion": version.to_string()});
            if let (Some(token), Some(metadata)) = (token, metadata.as_object_mut()) {
                metadata.insert("continue".into(), json!(token));
                metadata.insert("remainingItemCount".into(), json!(remaining));
            }
            let kind = format!("{}List", asked.resource.kind());
            let body = json!({
                "kind": kind, "apiVersion": asked.resource.api_version(), "metadata": metadata, "items": items,
            });
            (StatusCode::OK, body)
        }
        Err(Gone) => status(410, "Expired", "The provided continue parameter is too old", 0),
    }
}

fn get(shared: &Shared, asked: &Asked) -> (StatusCode, Value) {
    let found = shared.store().get(asked.resource, &(asked.namespace.clone(), asked.name.clone()));
    match found {
        Some(object) => (StatusCode::OK, Value::clone(&object)),
        None => status(404, "NotFound", &format!("{} {:?} not found", asked.resource.plural(), asked.name), 0),
    }
}

async fn create(shared: &Shared, asked: &Asked, request: hyper::Request<Incoming>) -> Result<Reply, std::io::Error> {
    let bytes = request.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    let Ok(object) = serde_json::from_slice::<Value>(&bytes) else {
        return Ok(failure(400, "BadRequest", "the body is no JSON", 0));
    };
    if asked.resource != Resource::Event {
        return Ok(failure(405, "MethodNotAllowed", "only events can be created", 0));
    }
    locked(&shared.events).push(object.clone());
    Ok(whole(StatusCode::CREATED, object.to_string()))
}

fn watch_reply(shared: Arc<Shared>, asked: Asked, action: Option<Action>) -> Reply {
    let selector = match selector(&asked) {
        Ok(selector) => selector,
        Err(error) => return failure(400, "BadRequest", &error.to_string(), 0),
    };
    let (outbox, inbox) = mpsc::channel(64);
    tokio::spawn(Watcher { shared, asked, selector, action, outbox, events: 0 }.run());
    let stream = futures::stream::unfold(inbox, |mut inbox| async { inbox.recv().await.map(|frame| (frame, inbox)) });
    let mut reply = Response::new(BodyExt::boxed(StreamBody::new(stream)));
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    reply
}

/// One watch.
struct Watcher {
    shared: Arc<Shared>,
    asked: Asked,
    selector: Selector,
    action: Option<Action>,
    outbox: mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
    /// How many events have been sent.
    events: usize,
}

/// The watch is over.
struct Over;

impl Watcher {
    async fn run(mut self) {
        let outcome = self.follow().await;
        debug_assert!(outcome.is_err(), "a watch ends in one way only");
    }

    async fn follow(&mut self) -> Result<Infallible, Over> {
        let mut changed = self.shared.changed.subscribe();
        let first = *changed.borrow_and_update();
        let mut version = self.begin().await?;
        let seconds = self.asked.text("timeoutSeconds").parse().unwrap_or(300);
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut bookmarks = first.bookmarks;
        let mut wanted = first.bookmarks;
        loop {
            let (events, newest) = {
                let store = self.shared.store();
                let (resource, namespace) = (self.asked.resource, &self.asked.namespace);
                (store.events_after(version, resource, namespace, &self.selector), store.version())
            };
            let Ok(events) = events else {
                self.error(410, "Expired", "too old resource version").await?;
                return Err(Over);
            };
            for (at, event) in events {
                self.event(&event).await?;
                version = at;
            }
            if wanted != bookmarks {
                // Only now: a bookmark says that everything before it has been told.
                bookmarks = wanted;
                version = newest;
                self.bookmark(version, false).await?;
            }
            tokio::select! {
                () = sleep_until(end) => return Err(Over),
                () = self.outbox.closed() => return Err(Over),
                nudged = changed.changed() => if nudged.is_err() { return Err(Over) },
            }
            let nudge = *changed.borrow_and_update();
            if nudge.dropped != first.dropped {
                self.send(Err(std::io::ErrorKind::ConnectionReset.into())).await?;
                return Err(Over);
            }
            if self.asked.is_set("allowWatchBookmarks") {
                wanted = nudge.bookmarks;
            }
        }
    }

    /// What a watch begins with; returns the version from which it goes on.
    async fn begin(&mut self) -> Result<u64, Over> {
        let initial = self.asked.is_set("sendInitialEvents");
        let from = self.asked.text("resourceVersion");
        if !initial && !matches!(from, "" | "0") {
            return from.parse().map_err(|_bad| Over);
        }
        let page = self.shared.store().list(self.asked.resource, &self.asked.namespace, &self.selector, 0, "");
        let Ok(Page { version, items, .. }) = page else { return Err(Over) };
        for object in items {
            self.event(&json!({"type": "ADDED", "object": object})).await?;
        }
        if initial {
            self.bookmark(version, true).await?;
        }
        Ok(version)
    }

    async fn event(&mut self, event: &Value) -> Result<(), Over> {
        match self.action.take() {
            Some(Action::GoneInStream) => {
                self.error(410, "Expired", "too old resource version").await?;
                return Err(Over);
            }
            Some(Action::ErrorInStream(code)) => {
                self.error(code, "InternalError", "a fault of the test").await?;
                return Err(Over);
            }
            Some(Action::CloseAfter(count)) if self.events >= count => return Err(Over),
            Some(Action::Duplicate) => {
                self.line(event).await?;
                self.action = Some(Action::Duplicate);
            }
            other => self.action = other,
        }
        self.events += 1;
        self.line(event).await
    }

    async fn bookmark(&mut self, version: u64, ends_initial: bool) -> Result<(), Over> {
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if ends_initial && let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("annotations".into(), json!({"k8s.io/initial-events-end": "true"}));
        }
        let object = json!({
            "kind": self.asked.resource.kind(), "apiVersion": self.asked.resource.api_version(), "metadata": metadata,
        });
        self.line(&json!({"type": "BOOKMARK", "object": object})).await
    }

    async fn error(&mut self, code: u16, reason: &str, message: &str) -> Result<(), Over> {
        let (_, status) = status(code, reason, message, 0);
        self.line(&json!({"type": "ERROR", "object": status})).await
    }

    async fn line(&mut self, event: &Value) -> Result<(), Over> {
        let mut bytes = event.to_string().into_bytes();
        bytes.push(b'\n');
        match self.action {
            Some(Action::Slow { bytes: size, delay }) => {
                for piece in bytes.chunks(size.max(1)) {
                    self.send(Ok(Frame::data(Bytes::copy_from_slice(piece)))).await?;
                    tokio::time::sleep(delay).await;
                }
                Ok(())
            }
            Some(Action::Truncate(left)) if left < bytes.len() => {
                bytes.truncate(left);
                self.send(Ok(Frame::data(bytes.into()))).await?;
                self.send(Err(std::io::ErrorKind::ConnectionReset.into())).await?;
                Err(Over)
            }
            Some(Action::Truncate(left)) => {
                self.action = Some(Action::Truncate(left - bytes.len()));
                self.send(Ok(Frame::data(bytes.into()))).await
            }
            _ => self.send(Ok(Frame::data(bytes.into()))).await,
        }
    }

    async fn send(&self, frame: Result<Frame<Bytes>, std::io::Error>) -> Result<(), Over> {
        self.outbox.send(frame).await.map_err(|_closed| Over)
    }
}

/// The answer in the way that a fault wants it.
fn shaped((code, body): (StatusCode, Value), action: Option<Action>) -> Reply {
    let text = body.to_string();
    let (size, delay, limit) = match action {
        Some(Action::Slow { bytes, delay }) => (bytes.max(1) * 64, delay, usize::MAX),
        Some(Action::Truncate(bytes)) if bytes < text.len() => (usize::MAX, Duration::ZERO, bytes),
        _ => return whole(code, text),
    };
    let mut bytes = text.into_bytes();
    let broken = bytes.len() > limit;
    bytes.truncate(limit);
    let pieces: Vec<Bytes> = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
    let end = broken.then(|| Err(std::io::ErrorKind::ConnectionReset.into()));
    let frames = pieces.into_iter().map(|piece| Ok(Frame::data(piece))).chain(end);
    let stream = futures::stream::unfold(frames, move |mut frames| async move {
        let frame = frames.next()?;
        tokio::time::sleep(delay).await;
        Some((frame, frames))
    });
    let mut reply = Response::new(BodyExt::boxed(StreamBody::new(stream)));
    *reply.status_mut() = code;
    reply
}

fn whole(code: StatusCode, text: String) -> Reply {
    let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {});
    let mut reply = Response::new(BodyExt::boxed(body));
    *reply.status_mut() = code;
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    reply
}

fn status(code: u16, reason: &str, message: &str, retry_after: u32) -> (StatusCode, Value) {
    let mut body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code,
    });
    if retry_after > 0
        && let Some(body) = body.as_object_mut()
    {
        body.insert("details".into(), json!({"retryAfterSeconds": retry_after}));
    }
    (StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body)
}

fn failure(code: u16, reason: &str, message: &str, retry_after: u32) -> Reply {
    let (code, body) = status(code, reason, message, retry_after);
    whole(code, body.to_string())
}

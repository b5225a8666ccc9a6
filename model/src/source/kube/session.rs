//! The one connection to the cluster that all reflectors share: whoever finds it broken first makes the next one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::KubeOptions;
use super::client::{Api, ConnectError, connect};
use super::remembered::Remembered;
use crate::with_causes;

/// For a program that gives credentials.
const SLOW: Duration = Duration::from_secs(60);
/// How many of those may hang at once. Each has a thread, of which there is a limited number.
const HANGING: usize = 4;

/// See the module.
pub(super) struct Session {
    options: KubeOptions,
    remembered: Arc<Remembered>,
    current: Mutex<Current>,
    attempts: Mutex<Attempts>,
}

struct Current {
    api: Api,
    /// Another address than the configured one was reported.
    reported: bool,
    /// Why the credentials could not be read again, if they could not.
    complaint: Option<String>,
}

/// Since when connections are being made: one at a time, but one that hangs does not keep others from being tried.
#[derive(Debug, Default)]
struct Attempts(Vec<Instant>);

impl Attempts {
    /// Whether another may begin.
    fn begin(&mut self, now: Instant) -> bool {
        let may = self.0.len() < HANGING && self.0.iter().all(|begun| now - *begun >= SLOW);
        if may {
            self.0.push(now);
        }
        may
    }

    fn end(&mut self, begun: Instant) {
        self.0.retain(|other| *other != begun);
    }
}

/// An attempt, which ends with it: also if a library panics.
struct Attempt<'a> {
    all: &'a Mutex<Attempts>,
    begun: Instant,
}

impl<'a> Attempt<'a> {
    /// `None` while another one is at it.
    fn begin(all: &'a Mutex<Attempts>) -> Option<Self> {
        let begun = Instant::now();
        let may = all.lock().unwrap_or_else(PoisonError::into_inner).begin(begun);
        may.then_some(Self { all, begun })
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).end(self.begun);
    }
}

impl Session {
    /// Reads the credentials for the first time.
    pub(super) async fn open(options: KubeOptions) -> Result<Arc<Self>, ConnectError> {
        let work = tokio::task::spawn_blocking(move || {
            let api = connect(&options, None)?;
            let remembered = Arc::new(Remembered::load(options.state_dir.as_deref()));
            let current = Mutex::new(Current { api, reported: false, complaint: None });
            Ok(Arc::new(Self { options, remembered, current, attempts: Mutex::default() }))
        });
        let outcome = match timeout(SLOW, work).await {
            Ok(done) => done.map_err(ConnectError::Died)?,
            Err(_elapsed) => Err(ConnectError::Slow(SLOW)),
        };
        outcome.inspect_err(log_complaint)
    }

    /// The connection as it is now.
    pub(super) fn api(&self) -> Api {
        self.current().api.clone()
    }

    pub(super) fn options(&self) -> &KubeOptions {
        &self.options
    }

    pub(super) fn remembered(&self) -> Arc<Remembered> {
        Arc::clone(&self.remembered)
    }

    /// A request with `api` succeeded.
    pub(super) fn worked(&self, api: &Api) {
        let mut current = self.current();
        if current.api.generation == api.generation && api.at.is_some() && !current.reported {
            current.reported = true;
            tracing::info!(
                configured = &*api.configured,
                endpoint = &*api.url,
                "the API server does not answer at the configured address; one of its endpoints that is remembered does; \
                 it is asked there from now on"
            );
        }
    }

    /// Why the credentials in use are not the newest.
    pub(super) fn complaint(&self) -> Option<String> {
        self.current().complaint.clone()
    }

    /// Reads the credentials again after a request with the connection `failed` did not succeed; with `elsewhere` at
    /// the next address. Returns the connection for the next request.
    pub(super) async fn renew(self: &Arc<Self>, failed: u64, elsewhere: bool) -> Api {
        let this = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || this.renew_now(failed, elsewhere));
        let outcome = match timeout(SLOW, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(died)) => Err(ConnectError::Died(died)),
            Err(_elapsed) => Err(ConnectError::Slow(SLOW)),
        };
        if let Err(error) = outcome {
            let complaint = Some(with_causes(&error));
            // Once for as long as the same is wrong.
            if self.complaint() != complaint {
                log_complaint(&error);
            }
            self.current().complaint = complaint;
        }
        self.api()
    }

    fn renew_now(&self, failed: u64, elsewhere: bool) -> Result<(), ConnectError> {
        // Another reflector is at it; its connection is used by the next request but one.
        let Some(_attempt) = Attempt::begin(&self.attempts) else { return Ok(()) };
        let now = self.api();
        if now.generation != failed {
            return Ok(());
        }
        let at = if elsewhere && now.may_move {
            address_after(now.at, &self.remembered.endpoints_behind(&now.configured))
        } else {
            now.at
        };
        let mut api = connect(&self.options, at)?;
        // The kubeconfig names another server now: the endpoint is none of that one's.
        if at.is_some() && (api.configured != now.configured || !api.may_move) {
            api = connect(&self.options, None)?;
        }
        api.generation = now.generation + 1;
        let mut current = self.current();
        // This attempt may have hung, and another have been faster.
        if current.api.generation == failed {
            let reported = current.reported && current.api.at == api.at;
            *current = Current { api, reported, complaint: None };
        }
        Ok(())
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where to ask after `at`: at the configured address, then at each endpoint, then at the configured address again. By
/// address, since the list is put in another order as the cluster is read.
fn address_after(at: Option<SocketAddr>, endpoints: &[SocketAddr]) -> Option<SocketAddr> {
    let Some(at) = at else { return endpoints.first().copied() };
    endpoints.iter().skip_while(|endpoint| **endpoint != at).nth(1).copied()
}

/// Not for `/readyz`, where it would be public.
fn log_complaint(error: &ConnectError) {
    if let Some(complaint) = error.complaint().filter(|complaint| !complaint.is_empty()) {
        tracing::warn!(complaint, "the credential plug-in of the kubeconfig failed");
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::KubeconfigSetting;
    use super::super::tests::served_at;
    use super::*;

    fn addresses(text: &str) -> Vec<SocketAddr> {
        text.split_whitespace().map(|address| format!("{address}:6443").parse().unwrap()).collect()
    }

    #[track_caller]
    fn check(at: &str, endpoints: &str, next: &str) {
        let found = address_after(addresses(at).first().copied(), &addresses(endpoints));
        assert_eq!(found, addresses(next).first().copied(), "after {at:?} of {endpoints:?}");
    }

    #[test]
    fn each_endpoint_is_tried_then_the_configured_address() {
        check("", "", "");
        check("", "192.0.2.1 192.0.2.2", "192.0.2.1");
        check("192.0.2.1", "192.0.2.1 192.0.2.2", "192.0.2.2");
        check("192.0.2.2", "192.0.2.1 192.0.2.2", "");
        // The list has got another order, or has lost it.
        check("192.0.2.1", "192.0.2.2 192.0.2.1", "");
        check("192.0.2.1", "192.0.2.3 192.0.2.1 192.0.2.2", "192.0.2.2");
        check("192.0.2.9", "192.0.2.1", "");
    }

    #[test]
    fn an_attempt_that_hangs_is_replaced_but_not_without_end() {
        let (mut attempts, start) = (Attempts::default(), Instant::now());
        assert!(attempts.begin(start));
        assert!(!attempts.begin(start + SLOW / 2));
        let later = |number: u32| start + SLOW * number;
        for number in 1..u32::try_from(HANGING).unwrap() {
            assert!(attempts.begin(later(number)), "{number}");
        }
        assert!(!attempts.begin(later(99)));
        attempts.end(start);
        assert!(attempts.begin(later(99)));
    }

    /// The session of a kubeconfig for `server`, and the folder that has it.
    async fn session(folder: &std::path::Path, server: &str) -> Arc<Session> {
        let path = folder.join("kubeconfig");
        write(&path, server);
        let options = KubeOptions {
            kubeconfig: Some(path),
            kubeconfig_setting: KubeconfigSetting::Flag,
            state_dir: Some(folder.join("state")),
            ..KubeOptions::default()
        };
        let session = Session::open(options).await.unwrap();
        session.remembered.learn(&served_at(&["192.0.2.1", "192.0.2.2"]));
        session
    }

    fn write(path: &std::path::Path, server: &str) {
        let text = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://{server}'}}}}]\n\
             users: [{{name: u, user: {{token: t}}}}]\n"
        );
        std::fs::write(path, text).unwrap();
    }

    #[tokio::test]
    async fn an_endpoint_that_is_found_is_reported_once() {
        let folder = tempfile::tempdir().unwrap();
        let session = session(folder.path(), "10.96.0.1").await;
        let api = session.renew(0, true).await;
        assert_eq!(&*api.url, "https://192.0.2.1:6443");
        session.worked(&api);
        // A watch that failed, and a list that has put the endpoints in another order.
        session.remembered.learn(&served_at(&["192.0.2.3", "192.0.2.1"]));
        let api = session.renew(api.generation, false).await;
        assert_eq!(&*api.url, "https://192.0.2.1:6443");
        assert!(session.current().reported, "it is the same address");
        let api = session.renew(api.generation, true).await;
        assert_eq!(&*api.url, "https://192.0.2.3:6443");
        assert!(!session.current().reported);
    }

    #[tokio::test]
    async fn the_endpoints_of_one_server_are_not_those_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let session = session(folder.path(), "10.96.0.1").await;
        let api = session.renew(0, true).await;
        assert_eq!(&*api.url, "https://192.0.2.1:6443");
        write(&folder.path().join("kubeconfig"), "api.example.test");
        let api = session.renew(api.generation, true).await;
        assert_eq!(&*api.url, "https://api.example.test");
    }
}

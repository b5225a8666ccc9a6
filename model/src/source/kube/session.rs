//! The one connection to the cluster that all reflectors share: whoever finds it broken first makes the next one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use super::KubeOptions;
use super::client::{Api, ConnectError, connect};
use super::remembered::Remembered;
use crate::with_causes;

/// For a program that gives credentials.
const SLOW: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Session {
    options: KubeOptions,
    remembered: Arc<Remembered>,
    current: Mutex<Current>,
    /// Held on threads that may block, by the one that connects.
    connecting: Mutex<()>,
}

struct Current {
    api: Api,
    /// 0 is the configured address; the others are the remembered endpoints in order.
    place: usize,
    /// Another address than the configured one was reported.
    reported: bool,
    /// Why the credentials could not be read again, if they could not.
    complaint: Option<String>,
}

impl Session {
    /// Reads the credentials for the first time.
    pub(super) async fn open(options: KubeOptions) -> Result<Arc<Self>, ConnectError> {
        let work = tokio::task::spawn_blocking(move || {
            let api = connect(&options, None)?;
            let remembered = Arc::new(Remembered::load(options.state_dir.as_deref()));
            let current = Mutex::new(Current { api, place: 0, reported: false, complaint: None });
            Ok(Arc::new(Self { options, remembered, current, connecting: Mutex::default() }))
        });
        match timeout(SLOW, work).await {
            Ok(done) => done.map_err(ConnectError::Died)?,
            Err(_elapsed) => Err(ConnectError::Slow(SLOW)),
        }
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
        if current.api.generation == api.generation && current.place > 0 && !current.reported {
            current.reported = true;
            tracing::info!(
                configured = &*api.configured,
                endpoint = &*api.url,
                "the API server does not answer at the configured address; one of its endpoints that is remembered does"
            );
        }
    }

    /// Why the credentials in use are not the newest.
    pub(super) fn complaint(&self) -> Option<String> {
        self.current().complaint.clone()
    }

    /// Reads the credentials again after a request with the connection `failed` did not succeed; with `elsewhere` at the
    /// next address. Returns the connection for the next request.
    pub(super) async fn renew(self: &Arc<Self>, failed: u64, elsewhere: bool) -> Api {
        let this = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || this.renew_now(failed, elsewhere));
        let outcome = match timeout(SLOW, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(died)) => Err(ConnectError::Died(died)),
            Err(_elapsed) => Err(ConnectError::Slow(SLOW)),
        };
        if let Err(error) = outcome {
            self.current().complaint = Some(with_causes(&error));
        }
        self.api()
    }

    fn renew_now(&self, failed: u64, elsewhere: bool) -> Result<(), ConnectError> {
        // Another reflector is at it; its connection is used by the next request but one.
        let Ok(_alone) = self.connecting.try_lock() else { return Ok(()) };
        let (now, place) = {
            let current = self.current();
            (current.api.clone(), current.place)
        };
        if now.generation != failed {
            return Ok(());
        }
        let (place, at) = if elsewhere { self.after(place, &now) } else { (place, self.address(place, &now)) };
        let mut api = connect(&self.options, at)?;
        api.generation = now.generation + 1;
        *self.current() = Current { api, place, reported: false, complaint: None };
        Ok(())
    }

    /// The place after `place`: the configured address, then each endpoint, then the configured address again.
    fn after(&self, place: usize, api: &Api) -> (usize, Option<SocketAddr>) {
        match self.address(place + 1, api) {
            Some(at) => (place + 1, Some(at)),
            None => (0, None),
        }
    }

    fn address(&self, place: usize, api: &Api) -> Option<SocketAddr> {
        if !api.may_move {
            return None;
        }
        self.remembered.endpoints_behind(&api.configured).get(place.checked_sub(1)?).copied()
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

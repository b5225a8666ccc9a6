//! Why a call on a socket failed, as `lab-peer` prints it and the lab compares it.

use std::fmt;
use std::io;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Why a call failed. In JSON it is the kernel's name of the error, such as `ECONNREFUSED`, or the error in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum CallError {
    /// `ECONNREFUSED`.
    Refused,
    /// `EPERM`.
    Denied,
    /// `EHOSTUNREACH`.
    NoHost,
    /// `ENETUNREACH`.
    NoNetwork,
    /// `ETIMEDOUT`: no answer within the time.
    TimedOut,
    /// `ECONNABORTED`: a receiver's socket was destroyed.
    Aborted,
    /// `EDESTADDRREQ`: a sender's socket was destroyed.
    NoDestination,
    /// `EADDRINUSE`.
    InUse,
    /// Any other error.
    Other(String),
}

/// The kernel's names.
const NAMES: [(CallError, &str); 8] = [
    (CallError::Refused, "ECONNREFUSED"),
    (CallError::Denied, "EPERM"),
    (CallError::NoHost, "EHOSTUNREACH"),
    (CallError::NoNetwork, "ENETUNREACH"),
    (CallError::TimedOut, "ETIMEDOUT"),
    (CallError::Aborted, "ECONNABORTED"),
    (CallError::NoDestination, "EDESTADDRREQ"),
    (CallError::InUse, "EADDRINUSE"),
];

impl From<String> for CallError {
    fn from(name: String) -> Self {
        let known = NAMES.into_iter().find(|(_, known)| *known == name);
        known.map_or_else(|| Self::Other(name), |(error, _)| error)
    }
}

impl From<CallError> for String {
    fn from(error: CallError) -> Self {
        error.to_string()
    }
}

impl From<&io::Error> for CallError {
    fn from(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            // A receive timeout reports itself as "try again".
            Some(Errno::EAGAIN) => Self::TimedOut,
            Some(errno) => format!("{errno:?}").into(),
            None if error.kind() == io::ErrorKind::TimedOut => Self::TimedOut,
            None => Self::Other(error.to_string()),
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Other(error) = self {
            return f.write_str(error);
        }
        f.write_str(NAMES.iter().find(|(error, _)| error == self).map_or("", |(_, name)| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: &io::Error, wanted: CallError, json: &str) {
        let error = CallError::from(error);
        assert_eq!(error, wanted);
        assert_eq!(serde_json::to_string(&error).unwrap(), json);
        assert_eq!(serde_json::from_str::<CallError>(json).unwrap(), wanted);
    }

    #[test]
    fn errors_of_the_kernel_have_its_names() {
        for (error, name) in NAMES {
            assert_eq!((CallError::from(name.to_owned()), error.to_string()), (error, name.to_owned()));
        }
        let kernel = |errno: Errno| io::Error::from_raw_os_error(errno as i32);
        check(&kernel(Errno::ECONNREFUSED), CallError::Refused, "\"ECONNREFUSED\"");
        check(&kernel(Errno::EAGAIN), CallError::TimedOut, "\"ETIMEDOUT\"");
        check(&kernel(Errno::ECONNRESET), CallError::Other("ECONNRESET".to_owned()), "\"ECONNRESET\"");
        check(&io::ErrorKind::TimedOut.into(), CallError::TimedOut, "\"ETIMEDOUT\"");
        check(&io::Error::other("no greeting"), CallError::Other("no greeting".to_owned()), "\"no greeting\"");
    }
}

//! Why a reply is not what the client asked for, for the log and for explanations.

use hickory_proto::rr::Name;

use crate::forward::ForwardError;
use crate::names::{self, NameError};
use crate::presentation::DataError;

/// Why a reply is not what the client asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Forward(#[from] ForwardError),
    #[error(transparent)]
    Rewrite(#[from] NoName),
    #[error(transparent)]
    Template(#[from] NoRecord),
}

impl Failure {
    /// The configuration does not fit the name that was asked for.
    pub(crate) fn is_of_configuration(&self) -> bool {
        match self {
            Self::Forward(_) => false,
            Self::Rewrite(_) | Self::Template(_) => true,
        }
    }
}

/// A rule makes no name of the one that is asked for, so that nothing can be asked. The reason is part of the text:
/// this is logged in one line, and its first words are CoreDNS's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid name after rewrite: the rule `{rule}` makes no name of {}: {reason}", names::text(.name))]
pub(crate) struct NoName {
    pub(crate) rule: String,
    pub(crate) name: Name,
    pub(crate) reason: NameError,
}

/// What is filled in makes no record. The reason is part of the text, because this is logged in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the template `{template}` makes no record of {name}: {reason}")]
pub(crate) struct NoRecord {
    pub(crate) template: String,
    pub(crate) name: String,
    pub(crate) reason: DataError,
}

//! The lab: nodes and pods as network namespaces.
#![forbid(unsafe_code)]

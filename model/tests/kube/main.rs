//! The Kubernetes source against an API server of our own: what it sees, and what it sees through.
#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]

mod credentials;
mod faults;
mod soak;
mod views;
mod watched;

//! The Kubernetes source against an API server of our own: what it sees, and what it sees through.
#![expect(clippy::tests_outside_test_module, reason = "an integration test is a test module")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::indexing_slicing, reason = "a test that cannot go on has failed, its helpers included")]
#![expect(clippy::print_stderr, reason = "the soak says how far it came")]

mod credentials;
mod faults;
mod soak;
mod views;
mod watched;

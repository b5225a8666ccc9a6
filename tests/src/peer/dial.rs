//! A client that stays: every line of its input is a question, each is worked on at once, and answered in one line.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::connect::{Attempt, timed};
use super::socket::DialTarget;
use super::{Mode, print};

/// Connect so often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The server.
    pub to: SocketAddr,
    /// How.
    pub mode: Mode,
    /// How often; it ends earlier at the first failure.
    pub count: u64,
    /// Milliseconds until an attempt counts as failed.
    pub timeout: u64,
}

/// What the attempts of a question came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Number of the question.
    pub id: usize,
    /// Every attempt, in order.
    pub attempts: Vec<Attempt>,
}

/// Answers until its input ends.
pub(super) fn dial() -> anyhow::Result<()> {
    for line in std::io::stdin().lines() {
        let line = line.context("reading a question")?;
        let (id, question): (usize, Question) =
            serde_json::from_str(&line).with_context(|| format!("reading the question {line}"))?;
        thread::spawn(move || print(&Answer { id, attempts: attempts(&question) }));
    }
    Ok(())
}

fn attempts(question: &Question) -> Vec<Attempt> {
    let Question { to, mode, count, timeout } = *question;
    let target = DialTarget { to, mode, timeout: Duration::from_millis(timeout), bind: None };
    let mut attempts = Vec::new();
    for number in 0..count {
        let attempt = timed(&target, number, None);
        let failed = attempt.error.is_some();
        attempts.push(attempt);
        if failed {
            break;
        }
    }
    attempts
}

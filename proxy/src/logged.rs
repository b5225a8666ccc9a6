//! What code under test writes to the log.

use std::io::{Read as _, Seek as _};

/// The lines that this thread writes meanwhile: level, message, fields.
pub(crate) fn logged(act: impl FnOnce()) -> Vec<String> {
    let mut file = tempfile::tempfile().unwrap();
    let writer = std::sync::Mutex::new(file.try_clone().unwrap());
    let lines = tracing_subscriber::fmt().with_writer(writer).with_ansi(false).without_time().with_target(false);
    tracing::subscriber::with_default(lines.finish(), act);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

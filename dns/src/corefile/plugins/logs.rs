//! The directives `log` and `errors`.

use hickory_proto::rr::Name;

use super::{no_arguments, options, unknown, value, zones_of};
use crate::corefile::text::Line;
use crate::corefile::{CorefileError, values};
use crate::errors::{Consolidation, ErrorsConfig, Level};
use crate::log::{Class, LogConfig};

/// `consolidate DURATION PATTERN [LEVEL]`; `stacktrace` is about panics, which have no counterpart here.
pub(super) fn errors(line: &Line) -> Result<ErrorsConfig, CorefileError> {
    no_arguments(line)?;
    let mut config = ErrorsConfig::default();
    for option in options(line) {
        let arguments: Vec<&str> = option.arguments().iter().map(String::as_str).collect();
        let (every, pattern, level) = match (option.name(), arguments.as_slice()) {
            ("stacktrace", []) => continue,
            ("consolidate", [every, pattern]) => (every, pattern, "error"),
            ("consolidate", [every, pattern, level]) => (every, pattern, *level),
            ("consolidate" | "stacktrace", _) => {
                return Err(option.error("takes a time, a pattern, and perhaps a level; stacktrace takes nothing"));
            }
            _ => return Err(unknown(line, option)),
        };
        let level = match level {
            "error" => Level::Error,
            "warning" => Level::Warning,
            "info" => Level::Info,
            "debug" => Level::Debug,
            _ => return Err(option.error(format!("{level} is none of error, warning, info and debug"))),
        };
        let every = value(option, values::duration(every))?;
        config.consolidate.push(Consolidation { every, pattern: super::regex(option, pattern)?, level });
    }
    Ok(config)
}

pub(super) fn log(line: &Line, domains: &[Name]) -> Result<LogConfig, CorefileError> {
    let usual = |word: &&String| !["{common}", "{combined}"].contains(&word.as_str());
    let words: Vec<String> = line.arguments().iter().filter(usual).cloned().collect();
    if let Some(format) = words.iter().find(|word| word.contains('{')) {
        return Err(
            line.error(format!("the format {format:?} is not supported; supported are {{common}} and {{combined}}"))
        );
    }
    let mut classes = Vec::new();
    for option in options(line) {
        if option.name() != "class" {
            return Err(unknown(line, option));
        }
        for word in option.arguments() {
            classes.push(match word.as_str() {
                "all" => Class::All,
                "success" => Class::Success,
                "denial" => Class::Denial,
                "error" => Class::Error,
                _ => return Err(option.error(format!("{word} is none of all, success, denial and error"))),
            });
        }
    }
    if classes.is_empty() {
        classes.push(Class::All);
    }
    let opcode = line.arguments().iter().any(|word| word == "{combined}");
    Ok(LogConfig { zones: zones_of(line, &words, domains)?, classes, opcode })
}

//! What stands between the braces of a directive: which options it has, and which of them may stand there twice.

use super::CorefileError;
use super::text::Line;
use crate::plugin::Plugin;

/// What may stand between the braces of a directive.
#[derive(Default)]
pub(super) struct Braces {
    /// Options of which a second one would replace the first, with spaces between them.
    pub(super) once: &'static str,
    /// Options that add up.
    pub(super) adding: &'static str,
    /// What else its reader understands there, which adds up too.
    pub(super) others: Option<&'static str>,
}

/// Refuses an option that a directive does not have, and a second one whose settings do not add up: one of the two
/// would have no effect. It may say the same twice.
pub(super) fn check(plugin: Plugin, directive: &Line) -> Result<(), CorefileError> {
    let Braces { once, adding, others } = plugin.braces();
    let options = directive.block.as_deref().unwrap_or_default();
    if let Some(option) = options.iter().find(|option| option.block.is_some()) {
        return Err(option.error("takes no braces"));
    }
    for (at, option) in options.iter().enumerate() {
        let is_in = |names: &str| names.split_whitespace().any(|name| name == option.name());
        if is_in(once) {
            let mut earlier = options.iter().take(at).filter(|earlier| earlier.name() == option.name());
            if earlier.any(|earlier| earlier.words != option.words) {
                return Err(option.error(format!("stands in this {} already: make one of them", directive.name())));
            }
        } else if !is_in(adding) && others.is_none() {
            return Err(unknown(directive, option));
        }
    }
    Ok(())
}

/// The refusal of an option that a directive does not have.
pub(super) fn unknown(directive: &Line, option: &Line) -> CorefileError {
    let Braces { once, adding, others } = Plugin::named(directive.name()).map(Plugin::braces).unwrap_or_default();
    let known = listed(once.split_whitespace().chain(adding.split_whitespace()), others);
    option.at.error(format!("{}: {} is not supported; supported are {known}", directive.name(), option.name()))
}

/// `a, b and c`, in the order of the alphabet, then what is no name.
pub(super) fn listed(names: impl Iterator<Item = &'static str>, others: Option<&'static str>) -> String {
    let mut all: Vec<&str> = names.collect();
    all.sort_unstable();
    all.extend(others);
    match all.as_slice() {
        [] => "none".to_owned(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

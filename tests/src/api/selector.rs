//! Label and field selectors, as query parameters spell them.

use anyhow::{Context as _, bail};
use serde_json::Value;

/// All of its requirements must hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Selector {
    pub(super) fn parse(labels: &str, fields: &str) -> anyhow::Result<Self> {
        let all = |text: &str| parts(text).into_iter().map(|part| requirement(&part)).collect::<anyhow::Result<_>>();
        Ok(Self { labels: all(labels)?, fields: all(fields)? })
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.pointer("/metadata/labels")?.get(key)?.as_str();
        let field = |key: &str| object.pointer(&format!("/{}", key.replace('.', "/")))?.as_str();
        self.labels.iter().all(|requirement| requirement.holds(label(&requirement.key)))
            // An absent field counts as empty.
            && self.fields.iter().all(|requirement| requirement.holds(Some(field(&requirement.key).unwrap_or_default())))
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let is_one_of = |values: &[String]| value.is_some_and(|value| values.iter().any(|one| one == value));
        match &self.test {
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::In(values) => is_one_of(values),
            Test::NotIn(values) => !is_one_of(values),
        }
    }
}

/// Split at commas that are not within parentheses.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0_usize;
    for character in text.chars() {
        match character {
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if let Some(last) = parts.last_mut() {
            last.push(character);
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

fn requirement(text: &str) -> anyhow::Result<Requirement> {
    let made = |key: &str, test| Ok(Requirement { key: key.trim().to_owned(), test });
    let one = |value: &str| vec![value.trim().to_owned()];
    for (operator, negated) in [(" notin ", true), (" in ", false)] {
        if let Some((key, values)) = text.split_once(operator) {
            let list = values.trim().strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
            let list =
                list.context("a set needs parentheses")?.split(',').map(|value| value.trim().to_owned()).collect();
            return made(key, if negated { Test::NotIn(list) } else { Test::In(list) });
        }
    }
    if let Some((key, value)) = text.split_once("!=") {
        return made(key, Test::NotIn(one(value)));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return made(key, Test::In(one(value)));
    }
    match text.strip_prefix('!') {
        Some(key) => made(key, Test::Absent),
        None if text.contains(' ') => bail!("{text:?} is no requirement"),
        None => made(text, Test::Exists),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(labels: &str, fields: &str, expected: bool) {
        let object = json!({
            "metadata": {"name": "a", "labels": {"app": "web", "empty": ""}}, "spec": {"clusterIP": "None"},
        });
        assert_eq!(Selector::parse(labels, fields).unwrap().matches(&object), expected, "{labels} {fields}");
    }

    #[test]
    fn selectors_select() {
        check("", "", true);
        check("app", "", true);
        check("!app", "", false);
        check("!other,empty", "", true);
        check("app=web", "", true);
        check("app==web,app!=db", "", true);
        check("app in (db, web),empty", "", true);
        check("app notin (db,web)", "", false);
        check("other!=x", "", true);
        check("", "spec.clusterIP!=None", false);
        check("", "metadata.name=a,spec.nodeName=", true);
        check("", "spec.nodeName=n1", false);
    }
}

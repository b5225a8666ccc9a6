//! The configuration file: our settings, kube-proxy's document, or both as documents of one file.

use std::path::Path;

use serde_json::Value;

use super::kube_proxy::{self, Decoded};
use super::{ConfigError, Settings};

const VERSION: &str = "shunt.dev/v1alpha1";
const KIND: &str = "ShuntConfiguration";

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigFile {
    /// Our settings.
    pub settings: Settings,
    /// kube-proxy's document, if the file has one.
    pub kube_proxy: Option<Decoded>,
}

impl ConfigFile {
    /// Reads `path`: JSON if it is called `*.json`, else YAML of one or more documents.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let refused = |reason| ConfigError::Parse { path: path.to_path_buf(), reason };
        let mut file = Self::default();
        let mut ours = 0;
        for document in if is_json { vec![text] } else { documents(&text) } {
            let value: Value = parse(&document, is_json).map_err(refused)?;
            let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
            match (text("apiVersion"), text("kind")) {
                _ if value.is_null() => {}
                (kube_proxy::API_VERSION, kube_proxy::KIND) => {
                    let refused = |reason: String| refused(with_line(&document, reason));
                    let mut decoded = kube_proxy::decode(value.clone()).map_err(refused)?;
                    decoded.document.check().map_err(refused)?;
                    decoded.warnings.iter_mut().for_each(|warning| *warning = located(path, &document, warning));
                    if file.kube_proxy.replace(decoded).is_some() {
                        return Err(refused(format!("two documents of kind {}; leave one", kube_proxy::KIND)));
                    }
                }
                ("" | VERSION, "" | KIND) => {
                    file.settings = parse(&without_type(&document, &value, is_json), is_json).map_err(refused)?;
                    ours += 1;
                    if ours > 1 {
                        return Err(refused("two documents with settings of shunt; put them into one".to_owned()));
                    }
                }
                (version, kind) => {
                    let (known, of) = (kube_proxy::API_VERSION, kube_proxy::KIND);
                    return Err(refused(format!(
                        "a document of {version} {kind} is not known; use {known} {of} or {VERSION} {KIND}"
                    )));
                }
            }
        }
        Ok(file)
    }
}

fn parse<T: serde::de::DeserializeOwned + Default>(text: &str, is_json: bool) -> Result<T, String> {
    if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())
    } else if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        Ok(T::default())
    } else {
        serde_saphyr::from_str(text).map_err(|error| error.without_snippet().to_string())
    }
}

/// The documents of a YAML text, each with empty lines in front so that line numbers are those of the file.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("---") {
            documents.push("\n".repeat(number + 1));
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    documents.retain(|document| !document.trim().is_empty());
    documents
}

/// Our document without the two fields that only say what it is; lines stay where they are.
fn without_type(document: &str, value: &Value, is_json: bool) -> String {
    if value.get("kind").is_none() && value.get("apiVersion").is_none() {
        return document.to_owned();
    }
    if is_json {
        let mut value = value.clone();
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|field, _| field != "kind" && field != "apiVersion");
        }
        return value.to_string();
    }
    let keep = |line: &str| !(line.starts_with("kind:") || line.starts_with("apiVersion:"));
    document.lines().map(|line| if keep(line) { format!("{line}\n") } else { "\n".to_owned() }).collect()
}

/// A warning about a field, with the line on which the field's name is first seen.
fn located(path: &Path, document: &str, warning: &str) -> String {
    let field = warning.split("no field ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or_default();
    match line_of(document, field) {
        Some(line) => format!("{}:{line}: {warning}", path.display()),
        None => format!("{}: {warning}", path.display()),
    }
}

/// A reason that begins with the path of a field and a colon, with the line of that field.
fn with_line(document: &str, reason: String) -> String {
    let field = reason.split(':').next().unwrap_or_default();
    match line_of(document, field) {
        Some(line) => format!("{reason} (line {line})"),
        None => reason,
    }
}

/// The line of a field that is given by its path: each name of the path is below the one before it, or in its line.
fn line_of(document: &str, field: &str) -> Option<usize> {
    let mut lines = document.lines().enumerate();
    let mut found = None;
    for name in field.split('.') {
        let is_named = |line: &str| {
            let rest = line.trim_start().trim_start_matches(['"', '\'']).strip_prefix(name);
            rest.is_some_and(|rest| rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
        };
        match lines.find(|(_, line)| is_named(line)) {
            Some((line, _)) => found = Some(line + 1),
            None => break,
        }
    }
    found
}

//! The text of one manifest file into Kubernetes objects, with the line in the file where each one begins.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use serde_saphyr::Spanned;

/// How a file is written, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// An object of one of the kinds that the model is made of.
#[derive(Clone, Debug)]
pub(super) enum Manifest {
    Namespace(Box<core::Namespace>),
    Service(Box<core::Service>),
    Slice(Box<discovery::EndpointSlice>),
    Pod(Box<core::Pod>),
    Node(Box<core::Node>),
}

/// One document or list item.
#[derive(Clone, Debug)]
pub(super) struct Parsed {
    /// Where it begins, or where its mistake is if that is known better; counted from 1.
    pub(super) line: usize,
    /// The object, or why it cannot be one.
    pub(super) manifest: Result<Manifest, Fault>,
}

/// Why a well-formed document or list item is not an object. Other documents are not affected.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// It is not an object of a kind that is read; with the reason and the consequence.
    NoObject(String),
    /// A field is of another type than its kind has.
    Mistyped {
        /// Unknown if the mistake is in the kind itself.
        kind: Option<KnownKind>,
        /// Only namespace and name, if they can be read.
        metadata: Box<ObjectMeta>,
        reason: String,
    },
}

impl Fault {
    fn mistyped(kind: Option<KnownKind>, object: &Value, reason: String) -> Self {
        let metadata = object.get("metadata");
        let text = |field| metadata.and_then(|metadata| metadata.get(field)).and_then(Value::as_str).map(str::to_owned);
        let metadata = ObjectMeta { namespace: text("namespace"), name: text("name"), ..ObjectMeta::default() };
        Self::Mistyped { kind, metadata: Box::new(metadata), reason }
    }
}

/// Why the file as a whole cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParseError {
    pub(super) line: Option<usize>,
    pub(super) reason: String,
}

/// Hands each object of the kinds we know to `sink`, one by one: Kubernetes' types are many times the size of what is
/// kept of them. Other kinds are left out, as a folder of manifests is full of Deployments.
pub(super) fn parse(text: &str, format: Format, mut sink: impl FnMut(Parsed)) -> Result<(), ParseError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let sink: Sink<'_> = &mut sink;
    match format {
        Format::Yaml => {
            for document in documents(text) {
                yaml_document(document, sink)?;
            }
        }
        Format::Json => json_documents(text, sink)?,
    }
    Ok(())
}

/// Of a list in a list.
const NESTED: &str = "a list within a list is not read";

/// The receiver of the objects.
type Sink<'a> = &'a mut dyn FnMut(Parsed);

/// A piece of the file and the number of lines before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece<'a> {
    text: &'a str,
    before: usize,
}

impl Piece<'_> {
    /// The line of its first content.
    fn first_line(&self) -> usize {
        let blank = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#') || *line == "---";
        self.before + 1 + self.text.lines().take_while(blank).count()
    }
}

/// The fields that decide how the rest is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TypeMeta {
    api_version: Option<String>,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct YamlList {
    #[serde(default)]
    items: Option<Vec<Spanned<Value>>>,
}

#[derive(Deserialize)]
struct JsonList<'a> {
    #[serde(default, borrow)]
    items: Option<Vec<&'a RawValue>>,
}

/// How a document is to be read.
enum Reading {
    One(KnownKind),
    /// The kind of items that do not say their own.
    List(TypeMeta),
    Skip,
    Bad(String),
}

/// The kinds of objects that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KnownKind {
    Namespace,
    Service,
    Slice,
    Pod,
    Node,
}

fn reading(head: &TypeMeta) -> Reading {
    let Some(kind) = head.kind.as_deref().filter(|kind| !kind.is_empty()) else {
        return Reading::Bad("it has no kind, so it is ignored; every document needs apiVersion and kind".to_owned());
    };
    let Some(version) = head.api_version.as_deref().filter(|version| !version.is_empty()) else {
        return Reading::Bad(format!("kind {kind} without apiVersion, so it is ignored"));
    };
    match (version, kind) {
        ("v1", "Namespace") => Reading::One(KnownKind::Namespace),
        ("v1", "Service") => Reading::One(KnownKind::Service),
        ("v1", "Pod") => Reading::One(KnownKind::Pod),
        ("v1", "Node") => Reading::One(KnownKind::Node),
        ("discovery.k8s.io/v1", "EndpointSlice") => Reading::One(KnownKind::Slice),
        ("v1", "List") => Reading::List(TypeMeta::default()),
        ("v1", "NamespaceList" | "ServiceList" | "PodList" | "NodeList")
        | ("discovery.k8s.io/v1", "EndpointSliceList") => Reading::List(TypeMeta {
            api_version: head.api_version.clone(),
            kind: kind.strip_suffix("List").map(str::to_owned),
        }),
        (other, "EndpointSlice" | "EndpointSliceList") if other.starts_with("discovery.k8s.io/") => {
            Reading::Bad(format!("apiVersion {other} of {kind} is not read; write discovery.k8s.io/v1"))
        }
        _ => {
            tracing::debug!(version, kind, "ignoring an object of a kind that is not read");
            Reading::Skip
        }
    }
}

fn typed<E>(kind: KnownKind, decode: impl Decode<E>) -> Result<Manifest, E> {
    Ok(match kind {
        KnownKind::Namespace => Manifest::Namespace(Box::new(decode.decode()?)),
        KnownKind::Service => Manifest::Service(Box::new(decode.decode()?)),
        KnownKind::Slice => Manifest::Slice(Box::new(decode.decode()?)),
        KnownKind::Pod => Manifest::Pod(Box::new(decode.decode()?)),
        KnownKind::Node => Manifest::Node(Box::new(decode.decode()?)),
    })
}

/// A text or value that becomes any type.
trait Decode<E> {
    fn decode<T: DeserializeOwned>(self) -> Result<T, E>;
}

struct Yaml<'a>(Piece<'a>);

impl Decode<ParseError> for Yaml<'_> {
    fn decode<T: DeserializeOwned>(self) -> Result<T, ParseError> {
        let Piece { text, before } = self.0;
        let read = |text: &str| serde_saphyr::from_str_with_options::<T>(text, yaml_options());
        read(text).map_err(|first| {
            // Once more behind as many empty lines, so that every line the message names is one of the file.
            let error = read(&format!("{}{text}", "\n".repeat(before))).err().unwrap_or(first);
            let location = error.location();
            ParseError {
                line: location.and_then(|location| usize::try_from(location.line()).ok()).filter(|line| *line > 0),
                reason: one_line(&error.without_snippet().to_string()),
            }
        })
    }
}

struct Json<'a>(Piece<'a>);

impl Decode<ParseError> for Json<'_> {
    fn decode<T: DeserializeOwned>(self) -> Result<T, ParseError> {
        let Piece { text, before } = self.0;
        serde_json::from_str(text).map_err(|first| {
            let padded = format!("{}{text}", "\n".repeat(before));
            json_error(&serde_json::from_str::<T>(&padded).err().unwrap_or(first))
        })
    }
}

impl Decode<serde_json::Error> for &Value {
    fn decode<T: DeserializeOwned>(self) -> Result<T, serde_json::Error> {
        T::deserialize(self)
    }
}

fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            // A List of every object of a large cluster is one document. The limits on aliases stay: they stop bombs.
            max_events: 100_000_000,
            max_nodes: 50_000_000,
            max_total_scalar_bytes: 1 << 30,
        },
    }
}

fn json_error(error: &serde_json::Error) -> ParseError {
    ParseError { line: Some(error.line()).filter(|line| *line > 0), reason: one_line(&error.to_string()) }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Splits at the `---` lines. YAML ends a document there whatever it is in the middle of, block scalars included, so
/// no parser is needed to find them.
fn documents(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let ends = |marker: &str| line.strip_prefix(marker).is_some_and(|rest| rest.trim_start().len() < rest.len());
        if ends("---") || line == "---" {
            pieces.push(Piece { text: text.get(start..offset).unwrap_or_default(), before: start_line });
            (start, start_line) = (offset, number);
        } else if ends("...") || line == "..." {
            pieces.push(Piece { text: text.get(start..offset).unwrap_or_default(), before: start_line });
            (start, start_line) = (offset + line.len(), number + 1);
        }
        offset += line.len();
    }
    pieces.push(Piece { text: text.get(start..).unwrap_or_default(), before: start_line });
    pieces.retain(|piece| piece.text.lines().any(has_content));
    pieces
}

/// Not only white space, a comment, a directive or a bare document marker.
fn has_content(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line);
    let rest = line.trim();
    !(rest.is_empty() || rest.starts_with('#') || line.starts_with('%'))
}

fn yaml_document(piece: Piece<'_>, sink: Sink<'_>) -> Result<(), ParseError> {
    let line = piece.first_line();
    let head = match quick_head(piece.text) {
        Some(head) => head,
        None => match Yaml(piece).decode::<Option<TypeMeta>>() {
            Ok(Some(head)) => head,
            // An empty document such as `--- ~` is null; that is no object and no mistake.
            Ok(None) => return Ok(()),
            Err(error) => return mistyped_yaml(None, piece, error, sink),
        },
    };
    match reading(&head) {
        // Of no interest, but a file with a mistake in it is not trusted in part.
        Reading::Skip => {
            let serde::de::IgnoredAny = Yaml(piece).decode()?;
        }
        Reading::Bad(reason) => sink(Parsed { line, manifest: Err(Fault::NoObject(reason)) }),
        Reading::One(kind) => match typed(kind, Yaml(piece)) {
            Ok(manifest) => sink(Parsed { line, manifest: Ok(manifest) }),
            Err(error) => mistyped_yaml(Some(kind), piece, error, sink)?,
        },
        Reading::List(default) => match Yaml(piece).decode::<YamlList>() {
            Ok(list) => {
                for item in list.items.into_iter().flatten() {
                    let item_line = usize::try_from(item.referenced.line()).map_or(line, |line| piece.before + line);
                    yaml_item(item.value, &default, item_line).into_iter().for_each(&mut *sink);
                }
            }
            Err(error) => mistyped_yaml(None, piece, error, sink)?,
        },
    }
    Ok(())
}

/// A mapping with a field of a wrong type is skipped by itself. A document that is not a mapping, or not YAML, makes
/// the whole file invalid.
fn mistyped_yaml(
    kind: Option<KnownKind>,
    piece: Piece<'_>,
    error: ParseError,
    sink: Sink<'_>,
) -> Result<(), ParseError> {
    match Yaml(piece).decode::<Value>() {
        Ok(object) if object.is_object() => {
            let line = error.line.unwrap_or_else(|| piece.first_line());
            sink(Parsed { line, manifest: Err(Fault::mistyped(kind, &object, error.reason)) });
            Ok(())
        }
        Ok(_) | Err(_) => Err(error),
    }
}

/// The head of a document in the usual form, without parsing all of it twice: nothing that belongs to a value begins
/// in the first column. What is read by it is still checked, as the types check their own kind.
fn quick_head(text: &str) -> Option<TypeMeta> {
    let mut head = TypeMeta::default();
    for line in text.lines() {
        let (field, value) = match (line.strip_prefix("kind: "), line.strip_prefix("apiVersion: ")) {
            (Some(value), None) => (&mut head.kind, value),
            (None, Some(value)) => (&mut head.api_version, value),
            (_, _) => continue,
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/' | b'-');
        let value = value.trim_end();
        if value.is_empty() || !value.bytes().all(plain) || field.replace(value.to_owned()).is_some() {
            return None;
        }
    }
    (head.kind.is_some() && head.api_version.is_some()).then_some(head)
}

fn yaml_item(value: Value, default: &TypeMeta, line: usize) -> Option<Parsed> {
    let mistyped = |kind, error: &serde_json::Error| Fault::mistyped(kind, &value, one_line(&error.to_string()));
    let manifest = match TypeMeta::deserialize(&value).map(|head| reading(&head.or(default))) {
        Ok(Reading::Skip) => return None,
        Ok(Reading::Bad(reason)) => Err(Fault::NoObject(reason)),
        Ok(Reading::List(_)) => Err(Fault::NoObject(NESTED.to_owned())),
        Ok(Reading::One(kind)) => typed(kind, &value).map_err(|error| mistyped(Some(kind), &error)),
        Err(error) => Err(mistyped(None, &error)),
    };
    Some(Parsed { line, manifest })
}

impl TypeMeta {
    /// What the item says of itself, else what its list says of all items.
    fn or(self, default: &Self) -> Self {
        Self {
            api_version: self.api_version.or_else(|| default.api_version.clone()),
            kind: self.kind.or_else(|| default.kind.clone()),
        }
    }
}

fn json_documents(text: &str, sink: Sink<'_>) -> Result<(), ParseError> {
    for document in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
        let document = document.map_err(|error| json_error(&error))?;
        json_document(text, document, None, sink)?;
    }
    Ok(())
}

/// One document, or with `list` one item of a list of that head.
fn json_document(file: &str, raw: &RawValue, list: Option<&TypeMeta>, sink: Sink<'_>) -> Result<(), ParseError> {
    let piece = Piece { text: raw.get(), before: lines_before(file, raw.get()) };
    let line = piece.before + 1;
    if list.is_none() && !matches!(raw.get().as_bytes(), [b'{', ..] | b"null") {
        return Err(ParseError { line: Some(line), reason: "the document is no object".to_owned() });
    }
    let mistyped = |kind, error: ParseError| {
        let object = serde_json::from_str::<Value>(piece.text).unwrap_or_default();
        let fault = Fault::mistyped(kind, &object, error.reason);
        Parsed { line: error.line.unwrap_or(line), manifest: Err(fault) }
    };
    let head = match Json(piece).decode::<Option<TypeMeta>>() {
        Ok(Some(head)) => list.map_or_else(|| head.clone(), |list| head.clone().or(list)),
        Ok(None) => return Ok(()),
        Err(error) => {
            sink(mistyped(None, error));
            return Ok(());
        }
    };
    let no_object = |reason| Parsed { line, manifest: Err(Fault::NoObject(reason)) };
    match (reading(&head), list) {
        (Reading::Skip, _) => {}
        (Reading::Bad(reason), _) => sink(no_object(reason)),
        (Reading::List(_), Some(_)) => sink(no_object(NESTED.to_owned())),
        (Reading::One(kind), _) => sink(match typed(kind, Json(piece)) {
            Ok(manifest) => Parsed { line, manifest: Ok(manifest) },
            Err(error) => mistyped(Some(kind), error),
        }),
        (Reading::List(default), None) => match serde_json::from_str::<JsonList<'_>>(raw.get()) {
            Ok(list) => {
                for item in list.items.into_iter().flatten() {
                    json_document(file, item, Some(&default), sink)?;
                }
            }
            Err(error) => sink(mistyped(None, json_error(&error))),
        },
    }
    Ok(())
}

/// How many lines of `file` end before `part`, which is a slice of it.
fn lines_before(file: &str, part: &str) -> usize {
    let offset = part.as_ptr().addr().saturating_sub(file.as_ptr().addr());
    file.get(..offset).unwrap_or_default().matches('\n').count()
}

#[cfg(test)]
mod tests;

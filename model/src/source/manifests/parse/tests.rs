//! Documents, lists, lines and errors of manifest files.

use super::*;

fn describe(parsed: &Parsed) -> String {
    let name = match &parsed.manifest {
        Ok(Manifest::Namespace(object)) => format!("Namespace {}", object.metadata.name.as_deref().unwrap_or_default()),
        Ok(Manifest::Service(object)) => format!("Service {}", object.metadata.name.as_deref().unwrap_or_default()),
        Ok(Manifest::Slice(object)) => format!("Slice {}", object.metadata.name.as_deref().unwrap_or_default()),
        Ok(Manifest::Pod(object)) => format!("Pod {}", object.metadata.name.as_deref().unwrap_or_default()),
        Ok(Manifest::Node(object)) => format!("Node {}", object.metadata.name.as_deref().unwrap_or_default()),
        Err(Fault::NoObject(reason)) => format!("! {reason}"),
        Err(Fault::Mistyped { kind, metadata, reason }) => {
            let name = metadata.name.as_deref().unwrap_or_default();
            let kind = kind.map_or_else(|| "document".to_owned(), |kind| format!("{kind:?}"));
            format!("! {kind} {name}: {reason}")
        }
    };
    format!("{}: {name}", parsed.line)
}

fn parsed(text: &str, format: Format) -> Result<Vec<Parsed>, ParseError> {
    let mut all = Vec::new();
    parse(text, format, |parsed| all.push(parsed)).map(|()| all)
}

#[track_caller]
fn check(format: Format, text: &str, expected: &[&str]) {
    let found = parsed(text, format).unwrap();
    let found: Vec<String> = found.iter().map(describe).collect();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "found {found:?}, expected {expected:?}");
    }
}

#[track_caller]
fn check_error(format: Format, text: &str, line: usize, reason: &str) {
    let error = parsed(text, format).unwrap_err();
    assert_eq!(error.line, Some(line), "{}", error.reason);
    assert!(error.reason.contains(reason), "{}", error.reason);
    assert!(!error.reason.contains('\n'));
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";

#[test]
fn documents_keep_their_line() {
    check(Format::Yaml, SERVICE, &["1: Service web"]);
    check(Format::Yaml, &format!("# hello\n\n{SERVICE}"), &["3: Service web"]);
    check(
        Format::Yaml,
        &format!("---\n{SERVICE}---\n{SERVICE}...\n---\n# nothing\n---\n"),
        &["2: Service", "7: Service"],
    );
    check(Format::Yaml, &format!("%YAML 1.2\n---\n{SERVICE}"), &["3: Service web"]);
    check(Format::Yaml, &format!("\u{feff}{SERVICE}").replace('\n', "\r\n"), &["1: Service web"]);
    check(Format::Yaml, "--- ~\n", &[]);
    check(Format::Yaml, "", &[]);
}

#[test]
fn a_marker_inside_a_block_scalar_must_be_indented_to_belong_to_it() {
    let text = "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: |\n    ---\n    kind: Service\n---\n";
    check(Format::Yaml, &format!("{text}{SERVICE}"), &["8: Service web"]);
}

#[test]
fn lists_are_unpacked() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata: {name: n1}\n- apiVersion: apps/v1\n  kind: Deployment\n- kind: Pod\n  apiVersion: v1\n  metadata: {name: p}\n";
    check(Format::Yaml, list, &["4: Node n1", "9: Pod p"]);
    check(Format::Yaml, &format!("{SERVICE}---\n{list}"), &["1: Service", "9: Node n1", "14: Pod p"]);
    let services = "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n";
    check(Format::Yaml, services, &["4: Service a", "5: Service b"]);
    let slices = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSliceList\nitems:\n- metadata: {name: a}\n  addressType: IPv4\n";
    check(Format::Yaml, slices, &["4: Slice a"]);
    check(Format::Yaml, "apiVersion: v1\nkind: List\nitems:\n", &[]);
}

#[test]
fn json_is_read_with_lines_too() {
    let text = "{\n\t\"apiVersion\": \"v1\", \"kind\": \"List\",\n\t\"items\": [\n\t\t{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"a\"}},\n\t\t{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"b\"}}\n\t]\n}\n{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"c\"}}\n";
    check(Format::Json, text, &["4: Node a", "5: Pod b", "8: Namespace c"]);
    check_error(Format::Json, "{\n\"kind\": \"Service\",\n oops}", 3, "key must be a string");
    check_error(Format::Json, &text.replace("{\"name\": \"b\"}", "\n7 8"), 6, "expected `,` or `}`");
    check_error(Format::Json, "[1]\n", 1, "no object");
    let mistyped = text.replace("{\"name\": \"b\"}", "\n7");
    check(Format::Json, &mistyped, &["4: Node a", "6: ! Pod : invalid type", "9: Namespace c"]);
}

#[test]
fn documents_that_are_no_objects_are_reported_alone() {
    check(Format::Yaml, &format!("a: 1\n---\n{SERVICE}"), &["1: ! it has no kind", "3: Service web"]);
    check(Format::Yaml, "kind: Service\n", &["1: ! kind Service without apiVersion"]);
    check(
        Format::Yaml,
        "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n",
        &["1: ! apiVersion discovery.k8s.io/v1beta1"],
    );
    check(Format::Yaml, "apiVersion: serving.knative.dev/v1\nkind: Service\n", &[]);
}

#[test]
fn errors_name_the_line_of_the_file() {
    check_error(Format::Yaml, "a: [1\nb: 2\n", 2, "");
    check_error(Format::Yaml, &format!("{SERVICE}---\napiVersion: v1\nkind: Service\nkind: Pod\n"), 8, "duplicate");
    check_error(Format::Yaml, "- a\n- b\n", 1, "");
    check_error(Format::Yaml, "just a word\n", 1, "");
}

#[test]
fn a_head_in_unusual_form_is_found_all_the_same() {
    let usual = "metadata: {name: n}\n";
    check(Format::Yaml, &format!("kind: \"Node\"\napiVersion: v1 # core\n{usual}"), &["1: Node n"]);
    check(Format::Yaml, "{kind: Node, apiVersion: v1, metadata: {name: n}}\n", &["1: Node n"]);
    check(Format::Yaml, &format!("kind:\n  Node\napiVersion:   v1\n{usual}"), &["1: Node n"]);
    let inner = "data:\n  x: |\n    kind: Pod\n";
    check(Format::Yaml, &format!("{inner}{usual}apiVersion: v1\nkind: Node\n"), &["1: Node n"]);
    check_error(Format::Yaml, "apiVersion: v1\nkind: Node\nmetadata: [\n", 3, "");
    check_error(Format::Yaml, "apiVersion: v1\nkind: ConfigMap\ndata: [\n", 3, "");
}

#[test]
fn a_field_of_a_wrong_type_costs_its_object_only() {
    let eighty = SERVICE.replace("port: 80", "port: eighty");
    check(
        Format::Yaml,
        &format!("{SERVICE}---\n{eighty}---\n{SERVICE}"),
        &["1: Service web", "9: ! Service web: invalid i32 at line 9", "11: Service web"],
    );
    check(Format::Yaml, &SERVICE.replace("80", "99999999999"), &["4: ! Service web: invalid i32"]);
    check(Format::Yaml, &SERVICE.replace("v1", "[v1]"), &["1: ! document web: "]);
    check(Format::Yaml, &SERVICE.replace("{name: web}", "web"), &["3: ! Service : "]);
    check(
        Format::Yaml,
        &format!("apiVersion: v1\nkind: List\nitems: oops\n---\n{SERVICE}"),
        &["3: ! document ", "5: Service"],
    );
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata: 7\n- 8\n- apiVersion: v1\n  kind: Node\n  metadata: {name: n1}\n";
    check(Format::Yaml, list, &["4: ! Node : invalid type", "7: ! document : invalid type", "8: Node n1"]);
    let json = r#"{"apiVersion": "v1", "kind": "ServiceList", "items": [
        {"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}},
        {"metadata": {"name": "b"}, "spec": {"ports": "oops"}},
        {"metadata": {"name": "c"}, "spec": {"ports": [{"port": 99999999999}]}},
        9,
        {"kind": 7, "metadata": {"name": "d"}},
        {"metadata": {"name": "e"}, "spec": {"ports": [{"port": 80}]}}]}"#;
    let expected = [
        "2: Service a",
        "3: ! Service b: invalid type",
        "4: ! Service c: invalid value",
        "5: ! document : ",
        "6: ! document d: ",
        "7: Service e",
    ];
    check(Format::Json, json, &expected);
    check(Format::Yaml, json, &expected);
    check(Format::Json, r#"{"apiVersion": "v1", "kind": "List", "items": 7}"#, &["1: ! document : "]);
}

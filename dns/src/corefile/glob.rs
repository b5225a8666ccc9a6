//! Patterns of files: `*` and `?`, in any part of a path.

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

use regex::Regex;

/// It stands for more than one file.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// The files that fit a pattern, in order; none if there is no such folder.
pub(super) fn matching(pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let text = part.as_os_str().to_string_lossy();
        if matches!(part, Component::Normal(_)) && is_pattern(&text) {
            let regex = part_regex(&text)?;
            let mut next = Vec::new();
            for folder in &found {
                let names = names(folder)?.into_iter().filter(|name| regex.is_match(&name.to_string_lossy()));
                next.extend(names.map(|name| folder.join(name)));
            }
            found = next;
        } else {
            for path in &mut found {
                path.push(part);
            }
        }
    }
    found.retain(|path| path.is_file());
    found.sort();
    Ok(found)
}

fn part_regex(part: &str) -> io::Result<Regex> {
    let escaped = regex::escape(part).replace(r"\*", ".*").replace(r"\?", ".");
    Regex::new(&format!("(?s)^{escaped}$")).map_err(io::Error::other)
}

/// What is in a folder, without what begins with two dots: there a mounted ConfigMap keeps every file a second time.
fn names(folder: &Path) -> io::Result<Vec<OsString>> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if !name.to_string_lossy().starts_with("..") {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_files_in_any_folder() {
        let place = tempfile::tempdir().unwrap();
        for file in ["a/1.override", "a/2.override", "a/x.server", "b/1.override", "..data/1.override", "top.override"]
        {
            let path = place.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        for (pattern, wanted) in [
            ("*.override", "top.override"),
            ("a/*.override", "a/1.override a/2.override"),
            ("a/?.override", "a/1.override a/2.override"),
            ("a/??.override", ""),
            ("*/1.override", "a/1.override b/1.override"),
            ("?/*.s*r", "a/x.server"),
            ("*", "top.override"),
            ("none/*", ""),
            ("top.override/*", ""),
        ] {
            let found = matching(&place.path().join(pattern)).unwrap();
            let found: Vec<_> =
                found.iter().map(|path| path.strip_prefix(place.path()).unwrap().to_str().unwrap()).collect();
            assert_eq!(found.join(" "), wanted, "{pattern}");
        }
        // Beside a Corefile that is named without its folder.
        assert_eq!(matching(Path::new("Cargo.to?l")).unwrap(), [PathBuf::from("Cargo.toml")]);
    }
}

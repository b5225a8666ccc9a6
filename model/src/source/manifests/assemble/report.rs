//! The present problems of the files, each with its file, line and object.

use super::super::object::{ObjectId, ObjectKind};
use super::{Assembly, File};
use crate::source::Problem;

impl Assembly {
    /// Every present problem, in a fixed order.
    pub(in super::super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for name in &self.faulty {
            if let Some(file) = self.files.get(name) {
                self.file_problems(name, file, &mut problems);
            }
        }
        self.contested_problems(&mut problems);
        self.address_problems(&mut problems);
        self.orphan_problems(&mut problems);
        problems.sort();
        problems
    }

    fn file_problems(&self, name: &str, file: &File, problems: &mut Vec<Problem>) {
        let path = self.dir.join(name);
        if let Some(error) = &file.error {
            let kept = if file.declared.is_empty() {
                "nothing of this file is in force until it is repaired"
            } else {
                "the last good version of this file stays in force"
            };
            problems.push(Problem {
                kind: "file",
                file: Some(path.clone()),
                line: error.line,
                object: None,
                reason: format!("{}; {kept}", error.reason),
            });
        }
        for declared in &file.declared {
            problems.extend(declared.notes.iter().map(|note| Problem {
                kind: declared.id.kind.problem(),
                file: Some(path.clone()),
                line: Some(declared.line),
                object: declared.id.describe(),
                reason: note.clone(),
            }));
        }
    }

    fn contested_problems(&self, problems: &mut Vec<Problem>) {
        for id in &self.contested {
            let Some((first, others)) = self.declarers.get(id).and_then(|declarers| declarers.split_first()) else {
                continue;
            };
            problems.extend(others.iter().map(|other| Problem {
                kind: id.kind.problem(),
                file: Some(self.dir.join(&*other.file)),
                line: Some(other.line),
                object: id.describe(),
                reason: format!("already declared in {}:{}, so this one is ignored", first.file, first.line),
            }));
        }
    }

    fn address_problems(&self, problems: &mut Vec<Problem>) {
        for (key, assigned) in self.deprived.iter().filter_map(|key| Some((key, self.assigned.get(key)?))) {
            let id = ObjectId { kind: ObjectKind::Service, key: key.clone() };
            problems.extend(assigned.complaints.iter().map(|complaint| self.object_problem(&id, complaint.clone())));
        }
    }

    fn orphan_problems(&self, problems: &mut Vec<Problem>) {
        for (service, slices) in self.missing.iter().filter_map(|key| Some((key, self.own_slices.get(key)?))) {
            problems.extend(slices.iter().map(|slice| {
                let mut key = service.clone();
                key.name = slice.clone();
                let id = ObjectId { kind: ObjectKind::Slice, key };
                self.object_problem(&id, format!("there is no Service {service}, so its endpoints are not used"))
            }));
        }
    }

    fn object_problem(&self, id: &ObjectId, reason: String) -> Problem {
        let declarer = self.declarers.get(id).and_then(|declarers| declarers.first());
        Problem {
            kind: id.kind.problem(),
            file: declarer.map(|declarer| self.dir.join(&*declarer.file)),
            line: declarer.map(|declarer| declarer.line),
            object: id.describe(),
            reason,
        }
    }
}

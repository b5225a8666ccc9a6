//! Names that are asked for under another name (DNS-13.6). The client gets its own name back, in the question and as
//! owner of the records, so that it knows the reply for its own; other names in the answer stay, unless a rule says
//! more.

use hickory_proto::rr::rdata::{CNAME, NS};
use hickory_proto::rr::{Name, RData, Record};
use regex::Regex;

use crate::names::{self, absolute};
use crate::reply::Reply;

/// One rule.
#[derive(Clone, Debug)]
pub(crate) struct Rewrite {
    /// Which names, and what they are rewritten to.
    pub(crate) rule: NameRule,
    /// How other names in the answer are rewritten.
    pub(crate) answers: Vec<AnswerRule>,
    /// Later rules apply too, to the new name.
    pub(crate) goes_on: bool,
}

/// How the name of a question is rewritten.
#[derive(Clone, Debug)]
pub(crate) enum NameRule {
    /// This very name.
    Exact(Name, Name),
    /// Names that begin so, as text; what follows stays.
    Prefix(String, String),
    /// Names that end so, as text; what comes before stays.
    Suffix(String, String),
    /// Names that have this in them, wherever it occurs.
    Substring(String, String),
    /// Names that match; `{1}` stands for the first group.
    Regex(Regex, String),
}

/// How names of an answer are rewritten, if they match.
#[derive(Clone, Debug)]
pub(crate) struct AnswerRule {
    /// Which names.
    pub(crate) part: AnswerPart,
    /// What they must match, as text with the final dot.
    pub(crate) pattern: Regex,
    /// What they are rewritten to; `{1}` stands for the first group.
    pub(crate) to: String,
}

/// Where names stand in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AnswerPart {
    /// Owners of records.
    Name,
    /// What records lead to: targets of aliases, of services, of mail.
    Value,
}

/// A name after the rules, if any applied.
pub(crate) struct Rewritten<'a> {
    asked: Name,
    pub(crate) name: Name,
    answers: Vec<&'a AnswerRule>,
}

impl NameRule {
    fn apply(&self, name: &Name) -> Option<Name> {
        if let Self::Exact(from, to) = self {
            return (from == name).then(|| to.clone());
        }
        let text = names::text(name).to_ascii_lowercase();
        let new = match self {
            Self::Exact(..) => return None,
            Self::Prefix(from, to) => format!("{to}{}", text.strip_prefix(from.as_str())?),
            Self::Suffix(from, to) => format!("{}{to}", text.strip_suffix(from.as_str())?),
            Self::Substring(from, to) if text.contains(from.as_str()) => text.replace(from.as_str(), to),
            Self::Substring(..) => return None,
            Self::Regex(regex, to) => return replaced(regex, to, &text),
        };
        absolute(&new).ok()
    }
}

impl AnswerRule {
    fn apply(&self, part: AnswerPart, name: &mut Name) {
        if self.part == part
            && let Some(new) = replaced(&self.pattern, &self.to, &names::text(name).to_ascii_lowercase())
        {
            *name = new;
        }
    }
}

/// `to` with the pattern's groups inserted; `None` if the result is not a name.
fn replaced(pattern: &Regex, to: &str, text: &str) -> Option<Name> {
    let groups = pattern.captures(text)?;
    let group = |at| groups.get(at).map_or("", |group| group.as_str());
    let new = (0..groups.len()).fold(to.to_owned(), |new, at| new.replace(&format!("{{{at}}}"), group(at)));
    absolute(&new).ok()
}

/// The name that a record leads to, if it is of a type of which it is rewritten.
#[expect(clippy::wildcard_enum_match_arm, reason = "the other types contain no name, or one that no client looks up")]
fn value(record: &mut Record) -> Option<&mut Name> {
    match &mut record.data {
        RData::CNAME(CNAME(name)) | RData::NS(NS(name)) => Some(name),
        RData::SRV(srv) => Some(&mut srv.target),
        RData::MX(mx) => Some(&mut mx.exchange),
        _ => None,
    }
}

impl<'a> Rewritten<'a> {
    /// The first rule that matches applies, and those after it if that rule says so.
    pub(crate) fn new(rules: &'a [Rewrite], asked: &Name) -> Option<Self> {
        let (mut now, mut answer_rules) = (None, Vec::new());
        for Rewrite { rule, answers, goes_on } in rules {
            let Some(new) = rule.apply(now.as_ref().unwrap_or(asked)) else { continue };
            now = Some(new);
            answer_rules.extend(answers);
            if !goes_on {
                break;
            }
        }
        now.map(|name| Self { asked: asked.clone(), name, answers: answer_rules })
    }

    /// Gives the client its own name back.
    pub(crate) fn restore(&self, reply: &mut Reply) {
        for record in reply.answers.iter_mut().chain(&mut reply.additionals) {
            if record.name == self.name {
                record.name = self.asked.clone();
            } else {
                self.answers.iter().for_each(|rule| rule.apply(AnswerPart::Name, &mut record.name));
            }
            if let Some(name) = value(record) {
                self.answers.iter().for_each(|rule| rule.apply(AnswerPart::Value, name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rules: &[NameRule], asked: &str, wanted: Option<&str>) {
        let rules: Vec<Rewrite> =
            rules.iter().map(|rule| Rewrite { rule: rule.clone(), answers: Vec::new(), goes_on: false }).collect();
        let rewritten = Rewritten::new(&rules, &Name::from_ascii(asked).unwrap());
        assert_eq!(rewritten.map(|rewritten| rewritten.name.to_ascii()).as_deref(), wanted, "{asked}");
    }

    #[test]
    fn names_are_rewritten_by_kind() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let exact = NameRule::Exact(name("web.example."), name("web.shop.svc.cluster.local."));
        check(std::slice::from_ref(&exact), "WEB.example.", Some("web.shop.svc.cluster.local."));
        check(&[exact], "www.web.example.", None);
        let suffix = NameRule::Suffix(".corp.example.".into(), ".svc.cluster.local.".into());
        check(&[suffix], "web.shop.Corp.example.", Some("web.shop.svc.cluster.local."));
        check(&[NameRule::Prefix("old-".into(), "new-".into())], "old-web.example.", Some("new-web.example."));
        check(&[NameRule::Substring("b".into(), "c".into())], "abab.example.", Some("acac.example."));
        let regex = NameRule::Regex(Regex::new(r"^(.*)\.(.*)\.on\.example\.$").unwrap(), "{1}.{2}.svc.x.".into());
        check(std::slice::from_ref(&regex), "web.shop.on.example.", Some("web.shop.svc.x."));
        // What would be no name is left as it is.
        check(&[NameRule::Suffix(".example.".into(), "..".into())], "web.example.", None);
        check(&[NameRule::Substring("q".into(), "y".into()), regex], "web.shop.on.example.", Some("web.shop.svc.x."));
    }

    #[test]
    fn a_rule_may_go_on() {
        let rule = |from: &str, to: &str, goes_on| Rewrite {
            rule: NameRule::Prefix(from.into(), to.into()),
            answers: Vec::new(),
            goes_on,
        };
        let rules = [rule("a", "b", true), rule("b", "c", false), rule("c", "d", false)];
        let rewritten = Rewritten::new(&rules, &Name::from_ascii("a.example.").unwrap()).unwrap();
        assert_eq!(rewritten.name.to_ascii(), "c.example.");
    }
}

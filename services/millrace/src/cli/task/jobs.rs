//! A file of tasks: one JSON object a line, read and checked whole before anything is sent.

use std::collections::{BTreeMap, HashMap};

use millrace_proto::common::v1::TaskSpec;
use millrace_proto::distributor::v1::SubmitTaskRequest;
use prost::Message;
use serde_json::Value;
use uuid::Uuid;

use super::flags::{SPEC, SizeFlag};
use crate::json;

/// A line's form with a request id of its own.
const REQUEST: &str = "millrace.distributor.v1.SubmitTaskRequest";
/// Complaints shown at most; a file of the wrong kind has one on every line.
const MAX_COMPLAINTS: usize = 10;

/// One line of the file.
#[derive(Debug, PartialEq)]
pub(crate) struct Job {
    /// Its number in the file, from 1; empty lines count.
    pub(crate) line: usize,
    /// What to send for it.
    pub(crate) request: SubmitTaskRequest,
}

/// Reads the lines. `key` is what request ids are made of, beside the line number; without one it is a digest of the
/// content, so that the same file makes the same ids wherever it lies. Gives the complaints about all lines when there
/// are any.
pub(crate) fn parse(content: &[u8], key: Option<&str>, size: SizeFlag) -> Result<Vec<Job>, Vec<String>> {
    let key = key.map_or_else(|| Uuid::new_v5(&Uuid::NAMESPACE_OID, content).to_string(), str::to_owned);
    let (mut jobs, mut complaints) = (Vec::new(), Vec::new());
    for (index, text) in content.split(|byte| *byte == b'\n').enumerate() {
        let text = text.strip_prefix(b"\xef\xbb\xbf").filter(|_| index == 0).unwrap_or(text).trim_ascii();
        if text.is_empty() {
            continue;
        }
        let line = index + 1;
        match parse_line(text).and_then(|request| size.check(request.spec.len()).map(|()| request)) {
            Ok(mut request) => {
                if request.request_id.is_empty() {
                    request.request_id = format!("{key}:{line}");
                }
                jobs.push(Job { line, request });
            }
            Err(why) if complaints.len() < MAX_COMPLAINTS => complaints.push(format!("line {line}: {why}")),
            Err(_) => {
                complaints.push("and more".to_owned());
                break;
            }
        }
    }
    if complaints.is_empty() { Ok(jobs) } else { Err(complaints) }
}

/// Reads a TaskSpec, or a request around one. A TaskSpec has no field `spec`, so that tells them apart.
fn parse_line(text: &[u8]) -> Result<SubmitTaskRequest, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| {
        // The library counts lines as well, and there is only one here.
        format!("not JSON: {}", error.to_string().replace(" at line 1 column", " at column"))
    })?;
    if value.get("spec").is_some() {
        let bytes = json::to_bytes(REQUEST, value).map_err(|error| format!("not a SubmitTaskRequest: {error}"))?;
        return SubmitTaskRequest::decode(bytes).map_err(|error| error.to_string());
    }
    let spec = json::to_bytes(SPEC, value).map_err(|error| format!("not a TaskSpec: {error}"))?;
    Ok(SubmitTaskRequest { request_id: String::new(), spec })
}

/// The lines that have the key of an earlier line of their tenant, each with that line: they make no task of their own.
pub(crate) fn repeats(jobs: &[Job]) -> BTreeMap<usize, usize> {
    let mut first = HashMap::new();
    let tenant = |job: &Job| TaskSpec::decode(job.request.spec.clone()).map(|spec| spec.tenant).unwrap_or_default();
    jobs.iter()
        .filter_map(|job| {
            let line = *first.entry((tenant(job), job.request.request_id.as_str())).or_insert(job.line);
            (line != job.line).then_some((job.line, line))
        })
        .collect()
}

/// Cuts the jobs into batches: bounded in number, and in bytes below what a service takes in one message. A job that is
/// larger than that goes alone, so that its refusal is its own.
pub(crate) fn batches(jobs: &[Job], most: usize, most_bytes: usize) -> Vec<&[Job]> {
    let (mut batches, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, job) in jobs.iter().enumerate() {
        let size = job.request.encoded_len() + 8;
        if index > start && (index - start >= most || bytes + size > most_bytes) {
            batches.push(&jobs[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += size;
    }
    if start < jobs.len() {
        batches.push(&jobs[start..]);
    }
    batches
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        size: SizeFlag,
    }

    fn parse(content: &[u8], key: Option<&str>) -> Result<Vec<Job>, Vec<String>> {
        super::parse(content, key, Line::parse_from(["x", "--max-spec-bytes", "100"]).size)
    }

    fn ids(content: &str, key: Option<&str>) -> Vec<String> {
        parse(content.as_bytes(), key).unwrap().into_iter().map(|job| job.request.request_id).collect()
    }

    #[test]
    fn both_forms_of_a_line_are_read() {
        let content = "{\"executor\": \"process\"}\n\n{\"requestId\": \"mine\", \"spec\": {\"executor\": \"vm\"}}\r\n";
        let jobs = parse(content.as_bytes(), Some("k")).unwrap();
        assert_eq!(jobs.iter().map(|job| job.line).collect::<Vec<_>>(), [1, 3]);
        assert_eq!((jobs[0].request.request_id.as_str(), jobs[1].request.request_id.as_str()), ("k:1", "mine"));
        assert_eq!(TaskSpec::decode(jobs[1].request.spec.clone()).unwrap().executor, "vm");
    }

    #[test]
    fn the_same_file_makes_the_same_ids_and_another_one_others() {
        let (one, other) =
            ("{\"executor\":\"a\"}\n{\"executor\":\"a\"}\n", "{\"executor\":\"a\"}\n{\"executor\":\"b\"}\n");
        assert_eq!(ids(one, None), ids(one, None));
        assert_ne!(ids(one, None)[0], ids(one, None)[1]);
        assert_ne!(ids(one, None)[0], ids(other, None)[0]);
        assert_eq!(ids(one, Some("k")), ["k:1", "k:2"]);
    }

    #[test]
    fn wrong_lines_are_named() {
        let content = "{\"executor\":\"a\"}\nnot json\n{\"executr\":\"a\"}\n[]\n{\"spec\":{},\"x\":1}\n";
        let complaints = parse(content.as_bytes(), None).unwrap_err();
        assert_eq!(complaints.len(), 4, "{complaints:?}");
        assert!(complaints[0].starts_with("line 2: not JSON"), "{complaints:?}");
        assert!(complaints[1].starts_with("line 3: not a TaskSpec: executr: "), "{complaints:?}");
        assert!(complaints[2].starts_with("line 4: ") && complaints[3].starts_with("line 5: "), "{complaints:?}");
    }

    #[test]
    fn a_line_that_is_too_large_is_wrong() {
        let large = format!("{{\"executor\":\"{}\"}}", "a".repeat(200));
        let complaints = parse(large.as_bytes(), None).unwrap_err();
        assert!(
            complaints[0].starts_with("line 1: it has 203 bytes, and a task has at most 100 bytes"),
            "{complaints:?}"
        );
    }

    #[test]
    fn keys_that_come_twice_are_found() {
        let line =
            |id: &str, tenant: &str| format!("{{\"requestId\":\"{id}\",\"spec\":{{\"tenant\":\"{tenant}\"}}}}\n");
        let content = [line("a", "t"), line("b", "t"), line("a", "u"), line("a", "t"), line("a", "t")].concat();
        assert_eq!(repeats(&parse(content.as_bytes(), None).unwrap()), [(4, 1), (5, 1)].into());
    }

    #[test]
    fn complaints_are_bounded() {
        let complaints = parse("x\n".repeat(100_000).as_bytes(), None).unwrap_err();
        assert_eq!(complaints.len(), MAX_COMPLAINTS + 1);
    }

    #[test]
    fn a_file_need_not_be_text() {
        assert!(parse(b"\xff\xfe\n", None).is_err());
        assert_eq!(parse(b"\xef\xbb\xbf{\"executor\":\"a\"}", None).unwrap().len(), 1);
        assert_eq!(parse(b"", None).unwrap(), []);
    }

    #[test]
    fn batches_are_bounded_in_number_and_bytes() {
        let jobs = parse("{\"executor\":\"a\"}\n".repeat(1001).as_bytes(), Some("k")).unwrap();
        let sizes = |most, bytes| batches(&jobs, most, bytes).iter().map(|batch| batch.len()).collect::<Vec<_>>();
        assert_eq!(sizes(500, usize::MAX), [500, 500, 1]);
        assert_eq!(sizes(2000, 1).len(), 1001);
        assert!(batches(&[], 500, 1).is_empty());
    }
}

//! The table against the protos: each method has a row, and the row says what the method's comment says.

use std::collections::BTreeMap;

use prost::Message;

use super::*;

// The few parts of `google.protobuf.FileDescriptorSet` that are looked at.
#[derive(Clone, PartialEq, Message)]
struct FileSet {
    #[prost(message, repeated, tag = "1")]
    file: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    service: Vec<Service>,
    #[prost(message, optional, tag = "9")]
    source: Option<Source>,
}

#[derive(Clone, PartialEq, Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    method: Vec<Method>,
}

#[derive(Clone, PartialEq, Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Source {
    #[prost(message, repeated, tag = "1")]
    location: Vec<Location>,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(int32, repeated, tag = "1")]
    path: Vec<i32>,
    #[prost(string, tag = "3")]
    leading_comments: String,
}

/// Each method of `upfleet.v1` with what its comment says after `Caller:`.
fn documented() -> BTreeMap<String, String> {
    let files = FileSet::decode(upfleet_api::DESCRIPTORS).unwrap();
    let mut methods = BTreeMap::new();
    for file in files.file.iter().filter(|file| file.package == "upfleet.v1") {
        for (s, service) in file.service.iter().enumerate() {
            for (m, method) in service.method.iter().enumerate() {
                let path = [6, s as i32, 2, m as i32];
                let location =
                    file.source.as_ref().unwrap().location.iter().find(|l| l.path == path).unwrap();
                let comment = &location.leading_comments;
                let caller = comment.split("Caller: ").nth(1).unwrap_or_default().trim();
                let name = format!("/upfleet.v1.{}/{}", service.name, method.name);
                methods.insert(name, caller.trim_end_matches('.').to_owned());
            }
        }
    }
    methods
}

#[test]
fn every_method_has_the_row_that_its_comment_promises() {
    let documented = documented();
    assert!(documented.len() > 40, "the descriptor set was read");
    for (method, comment) in documented {
        let Some(callers) = callers(&method) else { panic!("{method} has no row: nobody could call it") };
        if comment.starts_with("anyone") {
            assert_eq!(callers, NOBODY, "{method} is served on the enrollment listener");
            continue;
        }
        let mut told: Vec<&str> = comment.split(", ").collect();
        told.sort_unstable();
        let node = callers.node.then_some("node");
        let mut has: Vec<&str> = node.into_iter().chain(callers.roles.iter().map(|r| r.as_str())).collect();
        has.sort_unstable();
        assert_eq!(has, told, "{method}: the table and the comment differ");
    }
}

#[test]
fn no_row_is_left_of_a_method_that_is_gone() {
    let documented = documented();
    for (method, _) in METHODS.iter().filter(|(method, _)| method.starts_with("/upfleet.")) {
        assert!(documented.contains_key(*method), "{method} is not in the protos");
    }
    let mut names: Vec<&str> = METHODS.iter().map(|(method, _)| *method).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), METHODS.len(), "two rows for one method");
}

#[test]
fn admins_can_do_all_that_users_can_and_nodes_nothing_of_it() {
    let user = |role| Principal::User { user: "anna".parse().unwrap(), role };
    let node = Principal::Node("web-01".parse().unwrap());
    for (method, callers) in METHODS {
        let some = Role::ALL.iter().any(|role| callers.admit(&user(*role)));
        assert_eq!(callers.admit(&user(Admin)), some, "{method}");
        if callers.admit(&node) {
            let reads = ["Session", "DownloadArtifact", "GetCaller", "Check", "List"];
            assert!(reads.iter().any(|name| method.ends_with(name)), "{method} is open to nodes");
        }
    }
    assert!(callers("/upfleet.v1.NodeService/Unheard").is_none());
}

#[test]
fn what_is_needed_reads_as_a_sentence() {
    assert_eq!(OPERATORS.to_string(), "operator or admin");
    assert_eq!(ADMINS.to_string(), "admin");
    assert_eq!(READERS.to_string(), "viewer, operator, publisher or admin");
    assert_eq!(NOBODY.to_string(), "nobody");
}

//! `lab`: what is prepared, checked, cleaned up, and refused. That the labs are true is what `scripts/labs` tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Ended, Stack, ended, is_root, skipped};

/// `inception-run lab ...` where a reader would run it.
fn lab(stack: &Stack, words: &str) -> Ended {
    let arguments: Vec<_> = std::iter::once("lab").chain(words.split_whitespace()).collect();
    ended(in_english(&mut stack.command(&arguments)))
}

fn in_english(command: &mut Command) -> &mut Command {
    command.env("LC_ALL", "C.UTF-8")
}

#[test]
fn labs_are_listed_in_two_languages() {
    let stack = Stack::new("");
    let list: Vec<Value> = serde_json::from_str(&lab(&stack, "--format json").ok()).unwrap();
    let numbers: Vec<_> = list.iter().map(|row| row["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=10).collect::<Vec<_>>());
    assert!(list.iter().all(|row| row["directory"].is_null()));
    let korean = ended(stack.command(&["lab"]).env("LC_ALL", "ko_KR.UTF-8")).ok();
    assert!(korean.contains("FTP의 능동 모드와 수동 모드"), "{korean}");
    assert_eq!(lab(&stack, "--lang ko").ok(), korean);
}

#[test]
fn a_lab_is_prepared_once_and_cleaned_up() {
    let stack = Stack::new("");
    let text = lab(&stack, "1").ok();
    assert!(
        text.starts_with("# Lab 1: ") && !text.contains("<details>") && !text.contains("* Answer"),
        "{text}"
    );
    assert!(lab(&stack, "1 --answers").ok().contains("* Answer"));
    assert!(lab(&stack, "1 --lang ko").ok().starts_with("# 실습 1: "));
    // What the reader has changed stays.
    stack.write("lab-1/stack.toml", "# mine\n");
    assert!(lab(&stack, "1").err.contains("already prepared"));
    assert_eq!(fs::read_to_string(stack.path("lab-1/stack.toml")).unwrap(), "# mine\n");
    let row: Vec<Value> = serde_json::from_str(&lab(&stack, "--format json").ok()).unwrap();
    assert!(row[0]["directory"].as_str().unwrap().ends_with("/lab-1"));

    // Nothing runs and nothing was done. A broken file does not keep it from being cleaned up.
    let check = lab(&stack, "1 check");
    assert_eq!((check.code, check.out.matches("not yet").count()), (1, 2), "{}", check.out);
    stack.write("lab-1/stack.toml", "[services.web\n");
    lab(&stack, "1 clean").ok();
    assert!(!stack.path("lab-1").exists());
}

#[test]
fn a_lab_refuses_what_it_did_not_make() {
    let stack = Stack::new("");
    lab(&stack, "11").fails(2, &["there is no lab 11", "1 to 10"]);
    lab(&stack, "1 check").fails(1, &["lab 1 is not prepared here"]);
    lab(&stack, "1 clean").fails(1, &["lab 1 is not prepared here"]);
    stack.write("lab-1/thesis.txt", "x");
    lab(&stack, "1").fails(1, &["was not made by `inception-run lab`"]);
    lab(&stack, "1 clean").fails(1, &["lab 1 is not prepared here"]);
    // The mark of another lab is none of this one.
    stack.write("lab-1/.inception-lab", "2\n");
    lab(&stack, "1 clean").fails(1, &["lab 1 is not prepared here"]);
    assert!(stack.path("lab-1/thesis.txt").is_file());
}

#[test]
fn a_rehearsal_notices_what_is_not_as_the_text_says() {
    let stack = Stack::new("");
    if is_root() {
        skipped("a_rehearsal_notices_what_is_not_as_the_text_says", "labs are for an ordinary user");
        assert!(lab(&stack, "1 rehearse").ok().contains("skipped: lab 1"));
        return;
    }
    // An `lsns` that sees nothing.
    stack.write("bin/lsns", "#!/bin/sh\nexit 0\n");
    fs::set_permissions(stack.path("bin/lsns"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", stack.path("bin").display(), std::env::var("PATH").unwrap());
    let found = ended(in_english(&mut stack.command(&["lab", "1", "rehearse"])).env("PATH", path));
    assert_eq!(found.code, 1, "{}", found.out);
    assert!(found.out.contains("expected in vain: NS TYPE"), "{}", found.out);
    assert!(found.out.contains("lab 1 (process): NOT as the text says"), "{}", found.out);
}

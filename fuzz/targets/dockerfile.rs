//! Any text as a Dockerfile: it is refused with an error that names its place, or is understood in the same way again,
//! whatever its variables make of it.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use image::{BaseRequest, Error, check, plan_bases};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let args = BTreeMap::from([("ARG".to_owned(), "a/b*c\\".to_owned())]);
    let lines = text.matches('\n').count() + 1;
    let named = BTreeSet::new();
    let contexts = BTreeMap::new();
    let request = BaseRequest { name: "Dockerfile", text, args: &args, target: None, contexts: &contexts };
    match check("Dockerfile", text, &args, &named) {
        Ok(warnings) => {
            // What is right for all stages is right for those that are built, unless it asks for errors.
            let planned = plan_bases(&request, &|_| Ok(Vec::new()));
            assert!(planned.is_ok() || !warnings.is_empty(), "it was checked");
            assert_eq!(check("Dockerfile", text, &args, &named).ok(), Some(warnings));
        }
        Err(Error::Dockerfile { line, message, hint, .. }) => {
            assert!(line >= 1 && line <= lines && !message.is_empty());
            assert!(hint.is_none_or(|hint| !hint.is_empty()));
        }
        Err(error) => panic!("an error without a place: {error}"),
    }
});

//! Any bytes as a `config.json`: they are refused with an error of one line, or make a container that can be described
//! again and again in the same way.
#![no_main]

use std::path::Path;

use container::oci::{parse, resolve};

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let outcome = parse(text).and_then(|spec| {
        let plan = resolve(&spec, Path::new("/bundle"))?;
        let again = resolve(&spec, Path::new("/bundle"))?;
        assert_eq!(format!("{plan:?}"), format!("{again:?}"));
        Ok(())
    });
    if let Err(error) = outcome {
        assert!(!error.to_string().is_empty());
        assert!(error.hint().is_none_or(|hint| !hint.is_empty()));
    }
});

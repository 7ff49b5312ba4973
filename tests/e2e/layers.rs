//! `examples/three-layers`: what is run again, and what is not.

use std::fs;

use serde_json::Value;

use crate::stand::{Stand, fixtures};

/// The steps of a build: the number of the instruction, and whether it was run rather than found.
fn steps(said: &str) -> Vec<(u32, bool)> {
    let step = |line: &str| {
        let (label, text) = line.split_once(" [shell ")?.1.split_once("] ")?;
        let number = label.split_once('/')?.0.parse().ok()?;
        text.contains("RUN").then_some((number, !text.starts_with("cached: ")))
    };
    said.lines().filter_map(step).collect()
}

#[test]
fn three_layers() {
    let Some(bases) = fixtures("three_layers") else { return };
    let stand = Stand::of_example("three-layers");
    let build = |what: &str, options: &[&str]| {
        let mut command = stand.command(["build"]);
        command.args(options).env("INCEPTION_BASE_DIR", &bases);
        let said = crate::stand::run(&mut command, &[]);
        said.ok();
        println!("three layers: {what}: {:.0} ms", said.took.as_secs_f64() * 1e3);
        steps(&said.err)
    };
    let layers = || {
        let images: Vec<Value> =
            serde_json::from_str(&stand.say(["images", "--format", "json"]).ok()).unwrap();
        let image = images.iter().find(|image| image["name"] == "three-layers-e2e-shell:latest").unwrap();
        (image["id"].to_string(), image["layers"].as_u64().unwrap())
    };
    let texts = || stand.say(["run", "--rm", "shell", "-c", "cat /first /second /third"]).ok();

    assert_eq!(build("first build", &[]), [(2, true), (3, true), (4, true)]);
    let first = layers();
    assert_eq!(first.1, 4, "one of the base and three of its own");
    assert_eq!(texts(), "first layer\nsecond layer\nthird layer");

    assert_eq!(build("unchanged", &[]), [(2, false), (3, false), (4, false)]);
    assert_eq!(layers(), first);

    let file = stand.directory.join("Dockerfile");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("second layer", "2nd layer")).unwrap();
    assert_eq!(build("second line changed", &[]), [(2, false), (3, true), (4, true)]);
    assert_ne!(layers().0, first.0);
    assert_eq!(texts(), "first layer\n2nd layer\nthird layer");

    fs::write(&file, text).unwrap();
    assert_eq!(build("changed back", &[]), [(2, false), (3, false), (4, false)]);
    assert_eq!(layers(), first);
    assert_eq!(build("without the cache", &["--no-cache"]), [(2, true), (3, true), (4, true)]);
}

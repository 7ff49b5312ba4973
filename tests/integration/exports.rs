//! `export` as a user types it: what is a service and what is not, where files go, what is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::harness::Stack;

const FILE: &str = "[services.kubernetes]
command = [\"sleep\", \"1000\"]
[services.kubernetes.environment]
PASSWORD = \"topsecret\"
[services.web]
image = \"example.org/web:1\"
cpuset = \"0\"
egress = [\"example.org:443\"]
";

#[test]
fn a_stack_leaves_as_manifests_units_and_a_unit() {
    let stack = Stack::new("[services.web]\nimage = \"example.org/web:1\"\n");
    stack.rewrite(FILE);
    // A root file system is no image, and said to be none.
    stack.run(&["export", "kubernetes"]).fails(2, &["`kubernetes`", "import"]);
    let file = FILE.replace("command", "image = \"example.org/box:1\"\ncommand");
    stack.write("image.toml", &file);
    let image = stack.path("image.toml").to_str().unwrap().to_owned();
    let with = |words: &[&str]| stack.run(&[&["-f", image.as_str()], words].concat());

    let directory = stack.path("k8s");
    let ended = with(&["export", "kubernetes", "-o", directory.to_str().unwrap()]);
    let told = ended.err.clone();
    ended.ok();
    for word in ["image.toml:", "`cpuset` of service `web`", "`example.org:443`", "wrote"] {
        assert!(told.contains(word), "{word} in\n{told}");
    }
    let mode = |name: &str| fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("secrets.yaml"), 0o600);
    let manifest = fs::read_to_string(directory.join("service-kubernetes.yaml")).unwrap();
    assert!(manifest.contains("kind: Deployment") && !manifest.contains("topsecret"), "{manifest}");
    // Again, over what is there.
    with(&["export", "kubernetes", "-o", directory.to_str().unwrap()]).ok();
    with(&["--strict", "export", "kubernetes"]).fails(2, &["--strict", "cpuset"]);
    with(&["--strict", "export", "quadlet"]).fails(2, &["--strict", "egress"]);

    assert!(with(&["export", "quadlet"]).ok().contains("[Container]"));
    let built = "[services.web]\nbuild = { dockerfile_inline = \"FROM scratch\" }\n";
    stack.write("built.toml", &format!("base = [\"alpine\", \"debian\"]\n{built}"));
    let quadlet = |words: &[&str]| stack.run(&[&["-f", "built.toml", "export", "quadlet"], words].concat());
    assert!(!quadlet(&[]).ok().contains("[Build]"));
    assert!(quadlet(&["--build", "--base", "debian"]).ok().contains("[Build]"));
    quadlet(&["--base", "debian"]).fails(2, &["--build"]);
    let unit = with(&["--port-offset", "8000", "export", "systemd"]).ok();
    let command = format!("up\nWorkingDirectory={}", stack.path("").to_str().unwrap().trim_end_matches('/'));
    for word in
        ["--port-offset 8000", image.as_str(), command.as_str(), "Delegate=yes", "INCEPTION_DATA_DIR="]
    {
        assert!(unit.contains(word), "{word} in\n{unit}");
    }
}

#[test]
fn a_service_may_be_called_like_a_form() {
    let stack = Stack::new("[services.kubernetes]\ncommand = [\"sleep\", \"1000\"]\n");
    stack.up();
    let archive = stack.path("box.tar").to_str().unwrap().to_owned();
    // `--`, or an option of the one form, says that it is a service.
    for words in
        [&["export", "-o", &archive, "--", "kubernetes"][..], &["export", "-o", &archive, "kubernetes"]]
    {
        stack.run(words).ok();
        assert!(fs::metadata(&archive).unwrap().len() > 1000);
        fs::remove_file(&archive).unwrap();
    }
    // One of the two, and never both.
    for words in [&["export"][..], &["export", "kubernetes", "web"], &["export", "web", "kubernetes"]] {
        assert_eq!(stack.run(words).code, 2, "{words:?}");
    }
}

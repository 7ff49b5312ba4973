//! Images and file systems as files: what leaves comes back as the same.

use std::fs;

use crate::harness::Stack;

#[test]
fn images_and_file_systems_leave_as_files_and_come_back() {
    let stack = Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\n");
    stack.up();
    stack.sh("a", "echo made > /made; rm /etc/group");
    let change = "CMD [\"sleep\", \"1000\"]";
    let id = stack.run(&["commit", "-a", "Me", "-m", "as of today", "-c", change, "a", "mine:1"]).ok();
    let file = |name: &str| stack.path(name).to_str().unwrap().to_owned();
    let (docker, oci, layout) = (file("docker.tar"), file("oci.tar"), file("layout"));
    stack.run(&["save", "-o", &docker, "mine:1"]).ok();
    stack.run(&["save", "--format", "oci", "--compression", "zstd", "-o", &oci, "mine:1"]).ok();
    stack.run(&["save", "-o", &format!("{layout}/"), "mine:1"]).ok();
    for saved in [&docker, &oci, &layout] {
        stack.run(&["rmi", "mine:1"]).ok();
        let loaded = stack.run(&["load", "-i", saved]).ok();
        assert!(loaded.contains("Loaded image: mine:1"), "{saved}: {loaded}");
        let ids = stack.run(&["images", "-q", "--no-trunc", "mine:1"]).ok();
        assert_eq!(ids, id, "{saved}");
    }
    let flat = file("flat.tar");
    stack.run(&["export", "-o", &flat, "a"]).ok();
    stack.run(&["import", "-c", change, "-m", "flat", &flat, "flat:1"]).ok();
    stack.rewrite("[services.b]\nimage = \"flat:1\"\n[services.c]\nimage = \"mine:1\"\n");
    stack.up();
    for service in ["b", "c"] {
        let seen = stack.sh(service, "cat /made; ls /etc/group 2> /dev/null || echo removed");
        assert_eq!(seen, "made\nremoved", "{service}");
    }
    // What fails leaves no file, and no image.
    stack.run(&["save", "-o", &file("none.tar"), "nosuch:1"]).fails(1, &["nosuch"]);
    stack.run(&["import", "-c", "RUN true", &flat, "bad:1"]).fails(1, &["RUN"]);
    fs::write(stack.path("cut.tar"), &fs::read(&docker).unwrap()[..5000]).unwrap();
    stack.run(&["load", "-i", &file("cut.tar")]).fails(1, &["cut.tar"]);
    assert!(!stack.path("none.tar").exists());
    assert!(!stack.run(&["images"]).ok().contains("bad"));
}

#[test]
fn an_index_means_one_of_several_containers() {
    let stack = Stack::new("[services.a]\ncommand = [\"sleep\", \"1000\"]\nreplicas = 2\n");
    stack.up();
    for index in ["1", "2"] {
        stack.run(&["exec", "--index", index, "a", "touch", &format!("/made-{index}")]).ok();
    }
    for (index, own, other) in [("1", "made-1", "made-2"), ("2", "made-2", "made-1")] {
        let (flat, image) = (format!("flat{index}.tar"), format!("mine:{index}"));
        stack.run(&["export", "--index", index, "-o", &flat, "a"]).ok();
        stack.run(&["commit", "--index", index, "a", &image]).ok();
        let names = fs::read(stack.path(&flat)).unwrap();
        let has = |name: &str| names.windows(name.len()).any(|window| window == name.as_bytes());
        assert!(has(own) && !has(other), "{index}");
    }
    stack.run(&["export", "--index", "3", "a"]).fails(1, &["a-3"]);
}

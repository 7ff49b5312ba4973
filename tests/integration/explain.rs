//! `explain`: what it shows is what the kernel says, and its page is one that a browser takes.

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use crate::browser::Browser;
use crate::harness::{Stack, finish, free_ports};

fn explain(stack: &Stack, name: &str) -> Value {
    serde_json::from_str(&stack.run(&["explain", name, "--format", "json"]).ok()).unwrap()
}

/// Two replicas with a published port; the second service is one with a name and arguments to be afraid of.
fn services(port: u16) -> String {
    format!(
        r#"
[services.web]
command = ["sh", "-c", "echo '<b>written</b>' > /tmp/page; httpd -f -p 8080 -h /tmp & sleep 1000 & wait"]
ports = ["127.0.0.1:{port}:8080"]
cap_drop = ["NET_RAW"]
scale = 2

[services.mean]
command = ["sh", "-c", "sleep 1000; : '</title><script>document.title = 1</script><img src=http://192.0.2.1/x>'"]
init = false
"#
    )
}

#[test]
fn what_is_shown_is_what_the_kernel_says() {
    let port = free_ports(1);
    let stack = Stack::new(&services(port));
    stack.up();
    let facts = explain(&stack, "web");
    let first = stack.pid("web");
    assert_eq!(facts["pids"]["first"], first);
    // Namespaces, with the host's beside them.
    for namespace in facts["namespaces"].as_array().unwrap() {
        let kind = namespace["kind"].as_str().unwrap();
        let inode = |pid: &str| {
            let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()?;
            link.to_str()?.split_once('[')?.1.trim_end_matches(']').parse::<u64>().ok()
        };
        let (host, inside) = (inode("self"), inode(&first.to_string()));
        let Some((host, inside)) = host.zip(inside) else { continue };
        assert_eq!(
            (&namespace["host"], &namespace["container"]),
            (&host.into(), &inside.into()),
            "{namespace}"
        );
        assert_eq!(namespace["differs"], host != inside, "{namespace}");
    }
    let differs = |kind: &str| {
        let all = facts["namespaces"].as_array().unwrap();
        all.iter().find(|one| one["kind"] == kind).unwrap()["differs"] == true
    };
    assert!(["user", "pid", "mnt", "net", "uts", "ipc", "cgroup"].into_iter().all(differs), "{facts}");
    // Numbers of PID 1: the host's, one in the stack, and 1.
    let levels = facts["processes"][0]["levels"].as_array().unwrap();
    assert_eq!((&levels[0], levels.len(), &levels[2]), (&first.into(), 3, &1.into()), "{levels:?}");
    assert_eq!(facts["processes"][0]["uid_inside"], 0);
    let program = facts["pids"]["program"].as_u64().unwrap();
    assert_ne!(program, u64::try_from(first).unwrap(), "the init's child");
    // A file that root makes inside belongs to whom the computed example says.
    stack.sh("web", "echo > /tmp/mine");
    let made = format!("/proc/{first}/root/tmp/mine");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(made).unwrap());
    assert_eq!(facts["uids"]["examples"][0]["outside"], owner);
    assert_ne!(owner, 0, "root inside is never root outside");
    // Layers, one of which is the import.
    let root = &facts["mounts"]["root"];
    assert!(root["layers"][0]["size"].as_u64() > Some(0), "{root}");
    assert!(root["layers"][0]["digest"].as_str().unwrap().starts_with("sha256:"), "{root}");
    assert!(root["size"].as_u64() > Some(0), "the page was written: {root}");
    let proc = facts["mounts"]["table"].as_array().unwrap().iter().find(|mount| mount["target"] == "/proc");
    assert_eq!(proc.unwrap()["kind"], "proc");
    // Capabilities as the kernel has them, and each with a word.
    let status = fs::read_to_string(format!("/proc/{program}/status")).unwrap();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim();
    assert_eq!(facts["capabilities"]["bounding"], bounding);
    let capability = |name: &str| {
        let all = facts["capabilities"]["list"].as_array().unwrap();
        all.iter().find(|one| one["name"] == name).unwrap().clone()
    };
    assert_eq!(
        (&capability("CAP_CHOWN")["kept"], &capability("CAP_NET_RAW")["kept"]),
        (&true.into(), &false.into())
    );
    // The filter answers for itself.
    let filter = &facts["seccomp"];
    assert_eq!((&filter["mode"], &filter["no_new_privs"]), (&"filter".into(), &true.into()), "{filter}");
    let attempt = |call: &str| {
        let all = filter["attempts"].as_array().unwrap_or_else(|| panic!("{filter}"));
        all.iter().find(|one| one["call"] == call).unwrap()["inside"].as_str().unwrap().to_owned()
    };
    assert_eq!(attempt("unshare(0)"), "EPERM");
    assert_eq!(attempt("clone3(NULL, 0)"), "ENOSYS");
    assert_eq!(attempt("getppid()"), "ok");
    let refused = filter["refused"].as_array().unwrap();
    assert!(refused.iter().any(|one| one["call"] == "unshare" && one["answer"] == "EPERM"), "{refused:?}");
    let device = facts["devices"].as_array().unwrap().iter().find(|one| one["path"] == "/dev/null").unwrap();
    assert_eq!((&device["major"], &device["minor"]), (&1.into(), &3.into()));
    // The way in: a socket of netd's, interfaces on both sides, and who listens.
    let network = &facts["network"];
    let published = &network["published"][0];
    assert_eq!((&published["port"], &published["bound"]), (&8080.into(), &true.into()), "{network}");
    assert_eq!(published["pid"], stack.netd().unwrap());
    let interface = &network["interfaces"][0];
    assert_eq!((&interface["peer"]["seen"], &interface["bridge"]["seen"]), (&true.into(), &true.into()));
    let own: Value = serde_json::from_str(&stack.run(&["inspect", "web"]).ok()).unwrap();
    let address = own["addresses"].as_object().unwrap().values().next().unwrap();
    assert_eq!(interface["addresses"][0], *address, "{network}");
    assert_eq!(network["dns"]["bound"], true, "{network}");
    assert!(facts["cgroup"]["usage"]["memory"]["bytes"].as_u64() > Some(0), "{}", facts["cgroup"]);
    // Another replica is another container.
    let second = explain(&stack, "web-2");
    assert_eq!((&second["container"], &second["service"]), (&"web-2".into(), &"web".into()));
    assert_ne!(second["namespaces"], facts["namespaces"]);
    // As text it says the same; no terminal, no control characters.
    let text = stack.run(&["explain", "web"]).ok();
    for word in
        ["NAMESPACES", "CAP_CHOWN", "unshare(0)", "belongs to user", "/dev/null", "veth pair", "listens on"]
    {
        assert!(text.contains(word), "no {word} in:\n{text}");
    }
    assert!(!text.contains('\x1b') && text.contains(&format!("{first} > ")), "{text}");
}

#[test]
fn what_cannot_be_explained_is_told() {
    let stack = Stack::new(
        "[services.web]\ncommand = [\"sleep\", \"1000\"]\n\n[services.other]\ncommand = [\"true\"]\n",
    );
    stack.run(&["explain", "web"]).fails(1, &["is not running", "hint:"]);
    stack.up();
    stack.run(&["explain", "wbe"]).fails(2, &["no such service: `wbe`", "did you mean `web`?"]);
    stack.wait("other", "state", "exited");
    stack.run(&["explain", "other"]).fails(1, &["service `other` is not running: it is exited", "hint:"]);
    stack.run(&["explain", "--image", "nothing"]).fails(1, &["nothing"]);
    assert_eq!(stack.run(&["explain"]).code, 2);
    assert_eq!(stack.run(&["explain", "web", "--image", "x"]).code, 2);
    stack
        .run(&["explain", "web", "--html", "missing/page.html"])
        .fails(1, &["write the page missing/page.html"]);
    // One that has no network of the stack, no init, and no cgroup or filter of its own has less to show, not nothing.
    stack.rewrite("[services.web]\ncommand = [\"sleep\", \"1000\"]\ninit = false\nnetwork_mode = \"none\"\nsecurity_opt = [\"seccomp=unconfined\"]\n");
    stack.up();
    let facts = explain(&stack, "web");
    assert_eq!(
        (&facts["seccomp"]["mode"], &facts["pids"]["program"]),
        (&"none".into(), &facts["pids"]["first"])
    );
    assert!(facts["network"]["published"].as_array().unwrap().is_empty(), "{}", facts["network"]);
    assert!(stack.run(&["explain", "web"]).ok().contains("No port is published"));
}

#[test]
fn images_are_explained_by_their_layers() {
    let stack = Stack::new("[services.web]\ncommand = [\"true\"]\n");
    stack.up();
    let images = stack.run(&["images", "-q"]).ok();
    stack.run(&["tag", images.lines().next().unwrap(), "base:1"]).ok();
    stack.write("app/Dockerfile", "FROM base:1\nRUN echo '<i>' > /made\nENV A=1\n");
    stack.run(&["build", "-t", "app", "./app"]).ok();
    stack.run(&["build", "-t", "twin", "./app"]).ok();
    let facts: Value =
        serde_json::from_str(&stack.run(&["explain", "--image", "app", "--format", "json"]).ok()).unwrap();
    let instructions = facts["instructions"].as_array().unwrap();
    let run = instructions.iter().find(|one| one["text"].as_str().unwrap().contains("/made")).unwrap();
    assert_eq!(run["cached"], true, "{run}");
    let below =
        instructions.iter().find(|one| !one["layer"].is_null() && one["layer"] != run["layer"]).unwrap();
    assert!(!below["shared_with"].as_array().unwrap().is_empty(), "{facts}");
    let text = stack.run(&["explain", "--image", "app"]).ok();
    assert!(text.contains("SHARED AND CACHED") && text.contains("ENV A=1"), "{text}");
    let page = stack.path("image.html");
    stack.run(&["explain", "--image", "app", "--html", page.to_str().unwrap()]).ok();
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.contains("<svg") && !html.contains("<i>"), "{html}");
}

/// How wide a page is, what it has loaded, and which labels of a drawing overlap or leave it.
const MEASURE: &str = r#"(() => {
	const overlaps = [];
	for (const svg of document.querySelectorAll("svg")) {
		const boxes = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBBox()]);
		boxes.forEach(([name, a], i) => {
			if (a.x < 0 || a.x + a.width > 341) overlaps.push("outside: " + name);
			for (const [other, b] of boxes.slice(i + 1)) {
				const apart = a.x + a.width <= b.x || b.x + b.width <= a.x || a.y + a.height <= b.y || b.y + b.height <= a.y;
				if (!apart && name && other) overlaps.push(name + " / " + other);
			}
		});
	}
	const wide = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1);
	return {
		scroll: document.documentElement.scrollWidth, room: document.documentElement.clientWidth, inner: innerWidth, overlaps,
		wide: wide.slice(0, 3).map(e => e.tagName + " " + e.textContent.slice(0, 60)),
		loaded: performance.getEntriesByType("resource").map(entry => entry.name),
		drawings: document.querySelectorAll("svg").length,
	};
})()"#;

/// Width of a small phone.
const PHONE: u32 = 360;
/// Width of a window on a desk.
const DESK: u32 = 1180;

#[test]
fn the_page_is_whole_in_a_browser_and_on_a_phone() {
    let Some(mut browser) = Browser::start("the page of explain in a browser") else { return };
    let port = free_ports(1);
    let stack = Stack::new(&services(port));
    stack.up();
    for service in ["web", "mean"] {
        let page = stack.path(&format!("{service}.html"));
        let wrote = stack.run(&["explain", service, "--html", page.to_str().unwrap()]);
        assert!(wrote.err.contains("wrote"), "{wrote:?}");
        wrote.ok();
        for width in [PHONE, DESK] {
            // A link of its own, so that none is taken for another.
            let link = format!("file://{}?{width}", page.display());
            browser.open(&link, width, "light");
            browser.wait(&format!("location.href === '{link}' && document.readyState === 'complete'"));
            let dom = browser.value("document.documentElement.outerHTML");
            let dom = dom.as_str().unwrap();
            assert!(!dom.contains("<script") && !dom.contains("<img"), "{dom}");
            assert_eq!(service == "mean", dom.contains("&lt;script&gt;"), "{dom}");
            let measured = browser.value(MEASURE);
            assert_eq!(measured["inner"], width, "{measured}");
            // A scroll bar takes its part of the width.
            assert_eq!(
                (&measured["scroll"], &measured["drawings"]),
                (&measured["room"], &3.into()),
                "{measured}"
            );
            for list in ["wide", "overlaps", "loaded"] {
                assert_eq!(measured[list], Value::Array(Vec::new()), "{list}: {measured}");
            }
        }
    }
    let complaints = browser.complaints();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

#[test]
fn one_that_is_killed_again_and_again_is_explained_or_told() {
    let stack = Stack::new("[services.web]\ncommand = [\"sleep\", \"1000\"]\nrestart = \"always\"\n");
    stack.up();
    for _ in 0..8 {
        let mut explaining = stack.command(&["explain", "web", "--format", "json"]);
        let child = explaining.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let Some(pid) = stack.row("web")["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            // It may have ended by itself, having been killed before.
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
        let ended = finish(child);
        let err = ended.err;
        assert!(ended.code < 128 && !err.contains("panicked"), "{err}");
        match ended.code {
            0 => {
                let facts: Value = serde_json::from_str(&ended.out).unwrap();
                assert_eq!(facts["container"], "web");
            }
            _ => {
                assert!(err.contains("error: ") && err.contains("web"), "{err}");
            }
        }
    }
}

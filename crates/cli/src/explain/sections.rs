//! The sections of a service.

use stack::explain::{Capability, Example, Fact, Facts, IdMap, Layout, Network, Process, Published};
use stack::stats::{Measured, Origin};

use super::document::Section;
use crate::output::size;
use crate::stats;

/// What was read, or why it was not, in a cell.
fn shown<T: ToString>(fact: &Fact<T>) -> String {
    match fact {
        Fact::Known(value) => value.to_string(),
        Fact::Unknown { because, .. } => format!("? ({because})"),
    }
}

/// The same where there is little room.
fn short<T: ToString>(fact: &Fact<T>) -> String {
    fact.known().map_or_else(|| "?".to_owned(), ToString::to_string)
}

/// A note for what could not be read at all.
fn unread<T>(section: Section, fact: &Fact<T>) -> Section {
    match fact {
        Fact::Known(_) => section,
        Fact::Unknown { because, .. } => section.note(format!("Not known: {because}.")),
    }
}

/// All sections of a service.
pub(super) fn of(facts: &Facts) -> Vec<Section> {
    vec![
        overview(facts),
        namespaces(facts),
        processes(facts),
        ids(facts),
        layers(facts),
        mounts(facts),
        cgroup(facts),
        capabilities(facts),
        seccomp(facts),
        devices(facts),
        network(facts),
    ]
}

fn overview(facts: &Facts) -> Section {
    let pids = &facts.pids;
    let id =
        |id: &String| format!(" ({})", id.trim_start_matches("sha256:").chars().take(12).collect::<String>());
    let image = format!("{}{}", facts.image, facts.image_id.as_ref().map(id).unwrap_or_default());
    let netd = pids.netd.map_or_else(|| "none".to_owned(), |pid| pid.to_string());
    let text = "A container is no thing of the kernel's: it is processes with namespaces, a root, limits and fewer \
                rights than others. All below was read from the running kernel just now.";
    Section::new("overview", "CONTAINER", text).pairs(vec![
        ("container", format!("{} (service {}, stack {})", facts.container, facts.service, facts.stack)),
        ("image", image),
        ("kernel", format!("Linux {}: the host's, there is no other", facts.kernel)),
        ("PID 1", format!("{} on the host", pids.first)),
        ("program", format!("{} on the host", pids.program)),
        ("hub", format!("{}: owner of the stack's namespaces", pids.hub)),
        ("supervisor", format!("{}: starts, stops, restarts", pids.supervisor)),
        ("netd", format!("{netd}: carries connections in and out")),
    ])
}

fn namespaces(facts: &Facts) -> Section {
    let row = |one: &stack::explain::Namespace| {
        let verdict = match one.differs {
            Some(true) if one.stack == one.container => "the stack's".to_owned(),
            Some(true) if one.kind == "net" && facts.network.mode != "own" => {
                format!("{}'s", facts.network.mode)
            }
            Some(true) => "its own".to_owned(),
            Some(false) => "the host's".to_owned(),
            None => "?".to_owned(),
        };
        let cells =
            [one.kind.to_owned(), short(&one.host), short(&one.stack), short(&one.container), verdict];
        [&cells[..], &[one.isolates.to_owned()]].concat()
    };
    let rows = facts.namespaces.iter().map(row).collect();
    let text = "What a process sees of the system. Each namespace is an inode; processes with the same inode see the \
                same. Read from /proc/PID/ns of this program (host), of the hub (stack) and of PID 1 (container).";
    Section::new("namespaces", "NAMESPACES", text)
        .table(&["KIND", "HOST", "STACK", "CONTAINER", "IT HAS", "ISOLATES"], rows)
}

fn levels(process: &Process) -> String {
    let numbers = |levels: &Vec<u32>| levels.iter().map(u32::to_string).collect::<Vec<_>>().join(" > ");
    process.levels.known().map_or_else(|| format!("{} > ?", process.pid), numbers)
}

fn processes(facts: &Facts) -> Section {
    let row = |process: &Process| {
        let inside = process.uid_inside.map_or_else(|| "?".to_owned(), |uid| uid.to_string());
        let command = match process.command.known().map(String::as_str) {
            // A kernel thread's or a zombie's is empty.
            None | Some("") => format!("[{}]", short(&process.name)),
            Some(command) => command.to_owned(),
        };
        vec![levels(process), format!("{} > {inside}", short(&process.uid)), short(&process.threads), command]
    };
    let rows = facts.processes.iter().map(row).collect();
    let text = "A process in nested PID namespaces has a number in each (NSpid): on the host, in the stack, in the \
                container. The user, too, has a number on the host and another inside.";
    Section::new("processes", "PROCESSES", text)
        .table(&["PID: HOST > STACK > INSIDE", "USER: HOST > INSIDE", "THREADS", "COMMAND"], rows)
}

fn ids(facts: &Facts) -> Section {
    let text = "Root inside need not be root outside: the user namespace translates every id by this map. The examples \
                are computed from it.";
    let mut rows = Vec::new();
    for (kind, map) in [("uid", &facts.uids), ("gid", &facts.gids)] {
        for extent in map.known().iter().flat_map(|map| &map.extents) {
            let last = |first: u32| first.saturating_add(extent.count.saturating_sub(1));
            let range = |first: u32| match extent.count {
                1 => first.to_string(),
                _ => format!("{first}-{}", last(first)),
            };
            rows.push(vec![
                kind.to_owned(),
                range(extent.inside),
                range(extent.outside),
                extent.count.to_string(),
            ]);
        }
    }
    let section =
        Section::new("ids", "USERS AND GROUPS", text).table(&["ID", "INSIDE", "ON THE HOST", "COUNT"], rows);
    let section = unread(unread(section, &facts.uids), &facts.gids);
    let examples =
        facts.uids.known().into_iter().flat_map(|map| map.examples.iter().map(|one| example(map, one)));
    section.notes(&examples.collect::<Vec<_>>())
}

fn example(map: &IdMap, example: &Example) -> String {
    let who = if example.inside == 0 { "root (0)".to_owned() } else { format!("user {}", example.inside) };
    let Some(outside) = example.outside else {
        return format!(
            "There is no user {} inside: what belongs to others of the host shows as 65534 (nobody).",
            example.inside
        );
    };
    let name = example.name.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
    let root = match (example.inside, map.inside(0)) {
        (0, None) => " The host's root is nobody inside.",
        (0, Some(0)) => " That is the host's root: nothing is translated.",
        _ => "",
    };
    format!("A file that {who} makes inside belongs to user {outside}{name} on the host.{root}")
}

fn layers(facts: &Facts) -> Section {
    let text = "The root is an overlay: read-only layers of the image over each other, and a writable one on top. A file \
                is looked for from the top down; one that is changed is copied up first; one that is deleted gets a \
                whiteout above it. What is below is shared with all that have the same layers.";
    let section = Section::new("layers", "ROOT: LAYERS", text);
    let Some(root) = facts.mounts.known().and_then(|mounts| mounts.root.as_ref()) else {
        return unread(section, &facts.mounts).note("The root is no overlay, as far as could be read.");
    };
    let written = match root.size.known() {
        Some(bytes) => size(*bytes),
        None => "?".to_owned(),
    };
    let upper = root.upper.clone().unwrap_or_else(|| "none".to_owned());
    let mut rows =
        vec![vec!["writable".to_owned(), written, upper, "what the container has changed".to_owned()]];
    let count = root.layers.len();
    rows.extend(root.layers.iter().enumerate().map(|(index, layer)| {
        let instruction = layer.instruction.clone().unwrap_or_else(|| "(the image does not say)".to_owned());
        let size = layer.size.map_or_else(|| "?".to_owned(), size);
        vec![(count - index).to_string(), size, layer.directory.clone(), instruction]
    }));
    section.table(&["LAYER", "SIZE", "DIRECTORY", "MADE BY"], rows)
}

fn mounts(facts: &Facts) -> Section {
    let text = "What else is mounted, in the container's own mount namespace: the host sees none of it.";
    let section = Section::new("mounts", "MOUNTS", text);
    let Some(mounts) = facts.mounts.known() else { return unread(section, &facts.mounts) };
    let row = |mount: &stack::explain::Mount| {
        // What every mount has says nothing.
        let options: Vec<&str> = mount.options.split(',').filter(|option| *option != "relatime").collect();
        let is_from_host = mount.part != "/" && !["proc", "tmpfs", "devtmpfs"].contains(&mount.kind.as_str());
        let from = if is_from_host { format!(": {}", mount.part) } else { String::new() };
        let what = format!("{}{from}", mount.purpose);
        vec![mount.target.clone(), mount.kind.clone(), options.join(","), what]
    };
    section.table(&["WHERE", "TYPE", "OPTIONS", "WHAT"], mounts.table.iter().map(row).collect())
}

fn cgroup(facts: &Facts) -> Section {
    let cgroup = &facts.cgroup;
    let text = "How much it may use and uses: the kernel counts all processes of a cgroup together. The limits are files \
                of its directory.";
    let layout = match cgroup.layout {
        Layout::Unified => "version 2",
        Layout::Hybrid => "both versions (hybrid)",
        Layout::Version1 => "version 1",
        Layout::None => "none",
    };
    let own = match cgroup.own {
        Some(true) => "yes",
        Some(false) => "no, it is in that of the stack's own processes",
        None => "no",
    };
    let directory =
        cgroup.directory.as_ref().map_or_else(|| "-".to_owned(), |path| path.display().to_string());
    let mut pairs =
        vec![("host has", layout.to_owned()), ("own cgroup", own.to_owned()), ("directory", directory)];
    pairs.extend(cgroup.usage.iter().flat_map(usage));
    let limits = cgroup.limits.iter();
    let limits =
        limits.map(|limit| vec![limit.file.to_owned(), limit.value.clone(), limit.meaning.to_owned()]);
    let memberships = cgroup.memberships.known().into_iter().flatten().map(|one| {
        let controllers = if one.hierarchy == 0 { "version 2".to_owned() } else { one.controllers.join(",") };
        vec![one.hierarchy.to_string(), controllers, one.path.clone()]
    });
    let section = Section::new("cgroup", "CGROUP: LIMITS AND USE", text)
        .pairs(pairs)
        .table(&["LIMIT", "VALUE", "WHAT IT IS"], limits.collect())
        .table(&["HIERARCHY", "CONTROLLERS", "PATH"], memberships.collect());
    unread(section, &cgroup.memberships).notes(&cgroup.notes)
}

fn usage(usage: &Measured) -> Vec<(&'static str, String)> {
    let origin = match usage.memory.origin {
        Origin::Cgroup => "the cgroup's count",
        Origin::Processes => "the sum over its processes",
    };
    let stall = stats::pressure(usage);
    let pressure = match stall.as_str() {
        "--" => "not measured here".to_owned(),
        known => format!("{known} of the last 10 seconds something waited"),
    };
    vec![
        ("memory", format!("{} ({origin})", stats::memory(usage))),
        ("processor", format!("{:.3} s so far", usage.cpu_usec as f64 / 1e6)),
        ("processes", stats::pids(usage)),
        ("pressure", pressure),
        ("share", format!("{:.2}% of what it may have", usage.memory.percent)),
    ]
}

fn capabilities(facts: &Facts) -> Section {
    let sets = &facts.capabilities;
    let text = "Root's power in pieces. What is not in the bounding set nobody inside can have, not even root; and all \
                counts only for what the stack's user namespace owns.";
    let rows = |kept: bool| {
        let chosen = sets.list.iter().filter(move |one| one.kept == kept);
        let effect = |one: &Capability| if one.effective { "yes" } else { "no" }.to_owned();
        let row = move |one: &Capability| match kept {
            true => vec![one.name.clone(), effect(one), one.allows.to_owned()],
            false => vec![one.name.clone(), one.allows.to_owned()],
        };
        chosen.map(row).collect::<Vec<_>>()
    };
    let section = Section::new("capabilities", "CAPABILITIES", text).pairs(vec![
        ("program", sets.pid.to_string()),
        ("bounding", shown(&sets.bounding)),
        ("effective", shown(&sets.effective)),
    ]);
    section
        .table(&["KEPT", "IN EFFECT", "ALLOWS TO"], rows(true))
        .table(&["DROPPED", "WOULD ALLOW TO"], rows(false))
}

fn seccomp(facts: &Facts) -> Section {
    let filter = &facts.seccomp;
    let text = "A program in the kernel that looks at every system call first. It decides by the call's number and plain \
                arguments, before the kernel looks at rights or pointers.";
    let passes = match filter.mode.known() {
        Some(&"none") => "all calls".to_owned(),
        _ => format!("{} calls", filter.allowed),
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let section = Section::new("seccomp", "SECCOMP: SYSTEM CALLS", text).pairs(vec![
        ("mode", shown(&filter.mode)),
        ("programs", shown(&filter.programs)),
        ("no_new_privs", shown(&filter.no_new_privs)),
        ("lets pass", passes),
        ("refuses", format!("{} calls", filter.refused.len())),
    ]);
    let tries = filter.attempts.known().into_iter().flatten();
    let rows = tries.map(|one| vec![one.inside.clone(), one.host.clone(), one.call.clone()]).collect();
    let section = section.table(&["INSIDE", "ON THE HOST", "TRIED JUST NOW"], rows);
    let who = "The calls were made by a process that was put into the container as exec does it, and by this program.";
    let section = match filter.attempts {
        Fact::Known(_) => section.note(who),
        Fact::Unknown { .. } => unread(section, &filter.attempts),
    };
    let mut answers: Vec<&str> = filter.refused.iter().map(|one| one.answer.as_str()).collect();
    answers.sort_unstable();
    answers.dedup();
    let refused = |section: Section, answer: &str| {
        let calls = filter.refused.iter().filter(|one| one.answer == answer).map(|one| one.call.to_owned());
        section.words(format!("Refused ({answer})"), calls.collect())
    };
    answers.into_iter().fold(section, refused).words("It depends on arguments", words(&filter.depends))
}

fn devices(facts: &Facts) -> Section {
    let text = "The device files in its /dev. Its user namespace may not make any: these are the host's, mounted here.";
    let row = |device: &stack::explain::Device| {
        let numbers = format!("{}:{}", device.major, device.minor);
        vec![device.path.clone(), device.kind.to_owned(), numbers, device.mode.clone()]
    };
    let rows = facts.devices.known().into_iter().flatten().map(row).collect();
    unread(
        Section::new("devices", "DEVICES", text).table(&["DEVICE", "KIND", "NUMBERS", "MODE"], rows),
        &facts.devices,
    )
}

/// The process that listens on a port inside, in words.
pub(super) fn listener(network: &Network, published: &Published, processes: &[Process]) -> String {
    let kind = if published.protocol == "udp" { "udp" } else { "tcp" };
    let sockets = network.listening.known().into_iter().flatten();
    let Some(socket) =
        sockets.into_iter().find(|socket| socket.protocol == kind && socket.address.port() == published.port)
    else {
        return format!("nothing listens on port {} inside", published.port);
    };
    let name =
        |pid: u32| processes.iter().find(|process| process.pid == pid).map(|process| short(&process.name));
    match socket.pid {
        Some(pid) => format!("{} ({pid}) listens on {}", name(pid).unwrap_or_default(), socket.address),
        None => format!("a process listens on {}", socket.address),
    }
}

/// Who accepts on the host.
pub(super) fn acceptor(published: &Published) -> String {
    match (published.accepts, published.pid, published.bound) {
        ("netd", Some(pid), _) => format!("netd ({pid}) accepts"),
        ("netd", None, true) => "netd accepts".to_owned(),
        (_, _, true) => "the service itself accepts".to_owned(),
        (_, _, false) => "no socket seen there".to_owned(),
    }
}

fn network(facts: &Facts) -> Section {
    let network = &facts.network;
    let text = "The way from a client to the process. A published port is a socket of the host's; netd connects from a \
                socket that was made inside of the stack, so that the host forwards nothing.";
    let mode = match network.mode.as_str() {
        "own" => "its own network namespace".to_owned(),
        "host" => "the host's network namespace".to_owned(),
        other => format!("the network namespace of {other}"),
    };
    let mut section = Section::new("network", "NETWORK", text).pairs(vec![("it is in", mode)]);
    for published in &network.published {
        let steps =
            [format!("client connects to {} ({})", published.host, published.protocol), acceptor(published)];
        let link = network.interfaces.first().map(|interface| {
            let name = |seen: &Option<stack::explain::Seen>| {
                seen.as_ref().map_or_else(String::new, |seen| match seen.seen {
                    true => seen.name.clone(),
                    false => format!("{} (not seen)", seen.name),
                })
            };
            let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
            [
                format!(
                    "bridge {} of network {}",
                    name(&interface.bridge),
                    interface.network.clone().unwrap_or_default()
                ),
                format!(
                    "veth pair {} = {} ({})",
                    name(&interface.peer),
                    interface.name,
                    addresses.join(", ")
                ),
            ]
        });
        let end = listener(network, published, &facts.processes);
        section = section.steps(steps.into_iter().chain(link.into_iter().flatten()).chain([end]).collect());
    }
    if network.published.is_empty() {
        section = section.note(match network.mode.as_str() {
            "host" => "What it listens on is reached by whoever reaches the host.",
            _ => "No port is published: only other services of its networks reach it.",
        });
    }
    let interfaces = network.interfaces.iter().map(|interface| {
        let seen = |seen: &Option<stack::explain::Seen>| {
            seen.as_ref().map_or_else(String::new, |seen| seen.name.clone())
        };
        let addresses: Vec<String> = interface.addresses.iter().map(ToString::to_string).collect();
        let gateway = interface.gateway.map_or_else(String::new, |gateway| gateway.to_string());
        let of = interface.network.clone().unwrap_or_default();
        vec![
            interface.name.clone(),
            seen(&interface.peer),
            seen(&interface.bridge),
            gateway,
            of,
            addresses.join(" "),
        ]
    });
    let routes = network.routes.known().into_iter().flatten().map(|route| {
        let via = route.via.map_or_else(|| "the interface itself".to_owned(), |via| via.to_string());
        vec![route.to.clone(), via, route.interface.clone()]
    });
    let name = |pid: u32| facts.processes.iter().find(|one| one.pid == pid).map(|one| short(&one.name));
    // In the host's namespace others listen, too.
    let is_its_own = |socket: &&stack::explain::Listener| network.mode != "host" || socket.pid.is_some();
    let listening = network.listening.known().into_iter().flatten().filter(is_its_own).map(|socket| {
        let who = socket
            .pid
            .map_or_else(|| "?".to_owned(), |pid| format!("{} ({pid})", name(pid).unwrap_or_default()));
        vec![socket.protocol.to_owned(), socket.address.to_string(), who]
    });
    section = section
        .table(&["INTERFACE", "OTHER END", "BRIDGE", "GATEWAY", "NETWORK", "ADDRESSES"], interfaces.collect())
        .table(&["ROUTE TO", "BY", "INTERFACE"], routes.collect())
        .table(&["PROTOCOL", "LISTENS ON", "PROCESS"], listening.collect());
    section = unread(unread(section, &network.routes), &network.listening);
    let dns = &network.dns;
    let answers = match dns.bound {
        Some(true) => "netd answers, by a socket in the stack's namespace",
        Some(false) => "somebody outside of the stack answers",
        None => "not known",
    };
    let server = dns.servers.first().map_or_else(|| "none".to_owned(), ToString::to_string);
    section.pairs(vec![
        ("name server", format!("{server}: {answers}")),
        ("own names", dns.names.join(" ")),
        ("resolv.conf", shown_lines(&dns.resolv_conf)),
    ])
}

fn shown_lines(lines: &Fact<Vec<String>>) -> String {
    match lines {
        Fact::Known(lines) => lines.join(" | "),
        Fact::Unknown { because, .. } => format!("? ({because})"),
    }
}

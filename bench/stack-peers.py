#!/usr/bin/env python3
"""The five services for the peers of the part `stack` of scripts/bench, made of what `inception-run config` writes.

inception-run config --format json | bench/stack-peers.py compose SECRETS
    a file for docker-compose: the same images, networks, volumes, ports, capabilities and policies
inception-run config --format json | bench/stack-peers.py podman SECRETS
    the same as a script for sh, which is given `up` or `down`
inception-run config --format json | bench/stack-peers.py build ENGINE
    a script for sh that builds the images with `docker` or `podman`, all at a time; its arguments are options

SECRETS is a directory with a file for each secret. What only inception-run knows is written as what comes nearest: its
health checks as the images' own, the passive ports of `protocol = "ftp"` as ports. Services are started in the order of
`depends_on`, and wait for nobody's health: they wait for each other by themselves. The peers' first look at the health of
a service comes after a whole interval (Docker before 25), or never (Podman without systemd).
"""

from __future__ import annotations

import json
import shlex
import sys

STACK = "bench"


def in_order(services: dict) -> list[str]:
    """Each after those that it depends on."""
    found: list[str] = []

    def visit(name: str) -> None:
        for needed in services[name].get("depends_on", {}):
            visit(needed)
        if name not in found:
            found.append(name)

    for name in services:
        visit(name)
    return found


def ports(service: dict) -> list[str]:
    found = []
    for port in service.get("ports", []):
        found.append(f"{port['host_ip']}:{port['published']}:{port['target']}")
        if "passive" in port:
            found.append(f"{port['host_ip']}:{port['passive']}:{port['passive']}")
    return found


def volumes(service: dict) -> list[tuple[str, str, str]]:
    return [
        (volume["source"], volume["target"], "ro" if volume.get("read_only") else "rw")
        for volume in service.get("volumes", [])
    ]


def secrets(service: dict) -> list[str]:
    return [secret["source"] for secret in service.get("secrets", [])]


def compose(stack: dict, directory: str) -> str:
    services = {}
    for name, service in stack["services"].items():
        same = ("environment", "read_only", "tmpfs", "cap_drop", "cap_add", "restart", "stop_grace_period", "init")
        check = {key: service["healthcheck"][key] for key in ("interval", "timeout", "retries", "start_period")}
        services[name] = {
            "image": f"{STACK}-{name}",
            "depends_on": list(service.get("depends_on", {})),
            "networks": list(service["networks"]),
            "ports": ports(service),
            "volumes": [":".join(volume) for volume in volumes(service)],
            "secrets": secrets(service),
            "healthcheck": {"test": ["CMD", "/usr/local/bin/healthcheck"], **check},
            **{key: service[key] for key in (*same, "mem_limit", "cpus", "pids_limit") if key in service},
        }
    return json.dumps(
        {
            "version": "2.4",
            "services": services,
            "networks": stack["networks"],
            "volumes": stack["volumes"],
            "secrets": {name: {"file": f"{directory}/{name}"} for name in stack["secrets"]},
        },
        indent=1,
    )


def podman_run(name: str, service: dict, directory: str) -> list[str]:
    """The options of `podman run`."""
    words = ["-d", "--name", f"{STACK}-{name}", "--hostname", name]
    words += [f"--network={STACK}-{network}:alias={name}" for network in service["networks"]]
    words += [f"--publish={port}" for port in ports(service)]
    words += [f"--volume={STACK}-{source}:{target}:{mode}" for source, target, mode in volumes(service)]
    words += [f"--volume={directory}/{secret}:/run/secrets/{secret}:ro" for secret in secrets(service)]
    words += [f"--env={key}={value}" for key, value in service.get("environment", {}).items()]
    words += [f"--tmpfs={mount}" for mount in service.get("tmpfs", [])]
    words += [f"--cap-drop={capability}" for capability in service.get("cap_drop", [])]
    words += [f"--cap-add={capability}" for capability in service.get("cap_add", [])]
    # Docker gives this to every container by itself.
    words += ["--sysctl=net.ipv4.ip_unprivileged_port_start=0", f"--restart={service['restart']}"]
    if "stop_grace_period" in service:
        words += [f"--stop-timeout={service['stop_grace_period'].rstrip('s')}"]
    for key, option in (("mem_limit", "--memory"), ("cpus", "--cpus"), ("pids_limit", "--pids-limit")):
        if key in service:
            words += [f"{option}={service[key]}"]
    for key, option in (("read_only", "--read-only"), ("init", "--init")):
        if service.get(key):
            words += [option]
    return words + ["--pull=never", f"localhost/{STACK}-{name}"]


def podman(stack: dict, directory: str) -> str:
    services = stack["services"]
    order = in_order(services)
    up = [["podman", "network", "create", f"{STACK}-{name}"] for name in stack["networks"]]
    up += [["podman", "run", *podman_run(name, services[name], directory)] for name in order]
    down = [["podman", "stop", *(f"{STACK}-{name}" for name in reversed(order))]]
    down += [["podman", "rm", "-f", *(f"{STACK}-{name}" for name in order)]]
    down += [["podman", "network", "rm", "-f", *(f"{STACK}-{name}" for name in stack["networks"])]]
    lines = ["case $1 in", "up)", *(f"\t{shlex.join(command)} || exit" for command in up), "\t;;"]
    lines += ["down)", *(f"\t{shlex.join(command)}" for command in down), "\t;;", "esac"]
    return "\n".join(lines)


def build(stack: dict, engine: str) -> str:
    # A shell waits for all, and says whether all went well.
    lines = ["pids="]
    for name, service in stack["services"].items():
        context = service["build"]["context"]
        words = [engine, "build", "-q", "--network", "host", "-t", f"{STACK}-{name}", "-f", f"{context}/Dockerfile.debian"]
        lines += [f'{shlex.join(words)} "$@" {shlex.quote(context)} & pids="$pids $!"']
    return "\n".join([*lines, "for pid in $pids; do wait $pid || exit; done"])


def main(arguments: list[str]) -> int:
    match arguments:
        case ["compose", directory]:
            print(compose(json.load(sys.stdin), directory))
        case ["podman", directory]:
            print(podman(json.load(sys.stdin), directory))
        case ["build", ("docker" | "podman") as engine]:
            print(build(json.load(sys.stdin), engine))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

#!/usr/bin/python3
"""What scripts/bench has measured, as tables for the terminal and for docs/benchmarks.md.

bench/report.py print SAMPLES [PART]   the tables of a run, for the terminal
bench/report.py machine                this machine, as JSON
bench/report.py save SAMPLES PART MACHINE COMMAND DOCS
                                       keeps a part as DOCS/benchmarks/PART.json
bench/report.py docs [DOCS]            makes the tables of DOCS/benchmarks.md and its plots from what is kept there
bench/report.py check [DOCS]           fails if those tables are not what the data gives; plots are not drawn for it

SAMPLES are lines of JSON; bench/measure writes them and says what they mean.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.dont_write_bytecode = True

import plots  # noqa: E402
from samples import AIM, Metric, Part, Spread, capital, number  # noqa: E402

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"(<!-- measured: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclass
class Row:
    """A line of a table: a metric and one peer."""

    metric: str
    ours: str
    peer: str
    theirs: str
    ratio: str
    verdict: str


def shown(spread: Spread | None, unit: str = "") -> str:
    if spread is None:
        return ""
    text = f"{number(spread.median)} {unit}".strip()
    if spread.low == spread.high:
        return text
    return f"{text} ({number(spread.low)}–{number(spread.high)})"


def shown_of(metric: Metric, candidate: str, rounds: int) -> str:
    """With the number of rounds, if it is not in all of them."""
    measured = len(metric.values[candidate])
    return shown(metric.spread(candidate), metric.unit) + (f", {measured} of {rounds} rounds" if measured < rounds else "")


def through(spread: Spread, by: float) -> Spread:
    return Spread(spread.median / by, spread.low / by, spread.high / by)


def verdict_of_aim(metric: Metric, ours: Spread) -> str:
    verdict = metric.verdict(AIM, through(ours, metric.aim))
    return {"behind": "missed", "ahead": "met"}.get(verdict, verdict)


def rows(metric: Metric, rounds: int) -> list[Row]:
    found = []
    ours = metric.spread(metric.ours) if metric.ours else None
    for peer in metric.peers:
        ratio = metric.ratio(peer)
        verdict = metric.verdict(peer, ratio) if ratio else ""
        theirs = shown_of(metric, peer, rounds)
        found.append(Row("", "", peer, theirs, shown(ratio), verdict))
    if metric.aim is not None and ours:
        ratio = through(ours, metric.aim)
        found.append(Row("", "", AIM, f"{number(metric.aim)} {metric.unit}".strip(), shown(ratio), verdict_of_aim(metric, ours)))
    if not found:
        found.append(Row("", "", "", "", "", ""))
    found[0].metric = metric.label
    found[0].ours = shown_of(metric, metric.ours, rounds) if metric.ours else ""
    return found


HEADER = Row("", "ours", "beside", "theirs", "ratio", "")


def cells(row: Row) -> list[str]:
    return [row.metric, row.ours, row.peer, row.theirs, row.ratio, row.verdict]


def for_terminal(part: Part) -> str:
    out = [f"\n{part.name}: medians of {part.rounds()} rounds (first to third quartile); ratio: ours / theirs, round by round"]
    if part.versions:
        out.append("; ".join(f"{name} {text}" for name, text in part.versions.items()))
    tables = {group: [row for metric in metrics for row in rows(metric, part.rounds())] for group, metrics in part.groups().items()}
    everything = [HEADER] + [row for table in tables.values() for row in table]
    widths = [max(len(cells(row)[column]) for row in everything) for column in range(6)]
    for group, table in tables.items():
        out.append("")
        if group:
            out.append(group)
        for row in [HEADER] + table:
            out.append("  ".join(text.ljust(width) for text, width in zip(cells(row), widths)).rstrip())
    if part.missing:
        out.append("")
        out.extend(f"skipped: {name}: {why}" for name, why in part.missing)
    return "\n".join(out)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def print_samples(path: Path, only: str | None) -> None:
    lines = read(path)
    for name in dict.fromkeys(line["part"] for line in lines):
        if only is None or name == only:
            print(for_terminal(Part.of(name, [line for line in lines if line["part"] == name])))


def first(path: str, pattern: str) -> str:
    """What the pattern finds first in a file of the system."""
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return "unknown"
    return found.group(1).strip() if found else "unknown"


def cgroup_version() -> str:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return "2"
    return "1 and 2" if Path("/sys/fs/cgroup/unified").exists() else "1"


def machine() -> dict[str, str]:
    memory = first("/proc/meminfo", r"^MemTotal: *(\d+)")
    return {
        "processor": first("/proc/cpuinfo", r"^model name\s*:(.*)$"),
        "processors": str(os.cpu_count()),
        "memory": f"{int(memory) / 1024**2:.1f} GiB" if memory.isdigit() else memory,
        "kernel": f"Linux {platform.release()} {platform.machine()}",
        "distribution": first("/etc/os-release", r'^PRETTY_NAME="?([^"\n]*)'),
        "cgroups": cgroup_version(),
        "load": " ".join(Path("/proc/loadavg").read_text().split()[:3]),
        "user": "root" if os.getuid() == 0 else "an ordinary user",
    }


def save(samples: Path, part: str, machine_file: Path, command: str, docs: Path) -> None:
    """One line for all samples of a metric and candidate, by their rounds."""
    head = {
        "part": part,
        "date": datetime.date.today().isoformat(),
        "command": command,
        "machine": json.loads(machine_file.read_text()),
    }
    lines: list[dict] = []
    rounds: dict[tuple[str, str], dict[int, float]] = {}
    for line in read(samples):
        if line.pop("part") != part:
            continue
        if "value" not in line:
            lines.append(line)
            continue
        turn, value = line.pop("round"), line.pop("value")
        values = rounds.setdefault((line["metric"], line["candidate"]), {})
        if not values:
            lines.append({**line, "values": values})
        values[turn] = value
    text = json.dumps(head, indent=1)[:-2] + ',\n "samples": [\n'
    text += ",\n".join("  " + json.dumps(line) for line in lines) + "\n ]\n}\n"
    if not rounds:
        print(f"{part}: nothing was measured, so nothing is kept", file=sys.stderr)
        return
    kept = docs / "benchmarks" / f"{part}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(text)


def kept(docs: Path, name: str) -> tuple[dict, Part] | None:
    """What `save` has kept of a part."""
    path = docs / "benchmarks" / f"{name}.json"
    if not path.exists():
        return None
    data = json.loads(path.read_text())
    lines = []
    for line in data["samples"]:
        for turn, value in line.pop("values", {}).items():
            lines.append({**line, "round": int(turn), "value": value})
        if "candidate" not in line:
            lines.append(line)
    return data, Part.of(name, lines)


def described(data: dict, part: Part) -> str:
    host = data["machine"]
    where = (
        f"{host['processor']}, {host['processors']} processors, {host['memory']} of memory, {host['kernel']}, "
        f"{host['distribution']}, cgroups version {host['cgroups']}, as {host['user']}; load at the start {host['load']}"
    )
    versions = ", ".join(f"{name} {text}" for name, text in part.versions.items())
    return (
        f"`{data['command']}`, {data['date']}, {part.rounds()} rounds. {where}. Versions: {versions}. "
        f"Samples: [{part.name}.json](benchmarks/{part.name}.json). Medians (first to third quartile)."
    )


def table(metrics: list[Metric], rounds: int) -> list[str]:
    out = ["| | ours | beside | theirs | ratio | ours is |", "|---|---|---|---|---|---|"]
    for metric in metrics:
        for row in rows(metric, rounds):
            verdict = f"**{row.verdict}**" if row.verdict in ("behind", "missed") else row.verdict
            out.append("| " + " | ".join([*cells(row)[:5], verdict]) + " |")
    return out


def losses(part: Part) -> list[str]:
    """Where the whole spread of the ratios is on the wrong side, and where it is on both."""
    behind, level = [], []
    for metric in part.metrics.values():
        for peer in metric.peers:
            ratio = metric.ratio(peer)
            verdict = metric.verdict(peer, ratio) if ratio else ""
            if verdict == "behind":
                ours, theirs = metric.spread(metric.ours), metric.spread(peer)
                values = f"{number(ours.median)} beside {number(theirs.median)} {metric.unit}".strip()
                behind.append(f"- {metric.name}, beside {peer}: {values}, ratio {shown(ratio)}")
            elif verdict == "level":
                level.append(f"{metric.name} beside {peer}")
        ours = metric.spread(metric.ours) if metric.ours else None
        if metric.aim is not None and ours and verdict_of_aim(metric, ours) == "missed":
            behind.append(f"- {metric.name}: {number(ours.median)} {metric.unit}, the aim was {number(metric.aim)}")
    out = ["Where we lose:", "", *behind] if behind else ["We lose nowhere here."]
    if level:
        out += ["", "Level, with a spread on both sides: " + "; ".join(level) + "."]
    return out


def block(docs: Path, name: str) -> str:
    """What stands between the markers of a part."""
    found = kept(docs, name)
    if found is None:
        return "Not measured yet.\n"
    data, part = found
    out = [described(data, part)]
    ratios = plots.ratios_name(part)
    if ratios:
        out += ["", f"![{part.name}: how much better or worse ours is than each peer](benchmarks/{ratios})"]
    for group, metrics in part.groups().items():
        out += ["", f"**{capital(group)}**"] if group else []
        values = plots.values_name(part, group)
        if values:
            out += ["", f"![{group or part.name}: medians](benchmarks/{values})"]
        out += ["", *table(metrics, part.rounds())]
    lines = plots.lines_name(part)
    if lines:
        out += ["", f"![{part.name}: medians by number](benchmarks/{lines})"]
    out += ["", *losses(part)]
    if part.missing:
        out += ["", "Not measured: " + "; ".join(f"{candidate}: {why}" for candidate, why in part.missing) + "."]
    return "\n".join(out) + "\n"


def document(docs: Path) -> str:
    """docs/benchmarks.md with the blocks that the data gives."""
    text = (docs / "benchmarks.md").read_text()
    return BLOCK.sub(lambda found: found[1] + block(docs, found[2]) + found[4], text)


def unmarked(docs: Path) -> list[str]:
    """Parts with data, but without a place in the document."""
    marked = {found[2] for found in BLOCK.finditer((docs / "benchmarks.md").read_text())}
    return [path.name for path in sorted((docs / "benchmarks").glob("*.json")) if path.stem not in marked]


def make_docs(docs: Path) -> None:
    for path in sorted((docs / "benchmarks").glob("*.json")):
        found = kept(docs, path.stem)
        if found:
            plots.draw(found[1], path.parent)
    (docs / "benchmarks.md").write_text(document(docs))


def wrong(docs: Path) -> list[str]:
    """Why the document is not what the data gives."""
    found = [f"{name}: no block `<!-- measured: ... -->` in benchmarks.md" for name in unmarked(docs)]
    if document(docs) != (docs / "benchmarks.md").read_text():
        found.append("benchmarks.md is not what benchmarks/*.json give: bench/report.py docs")
    return found


def check(docs: Path) -> int:
    found = wrong(docs)
    for line in found:
        print(f"{docs}: {line}", file=sys.stderr)
    return 1 if found else 0


def main(arguments: list[str]) -> int:
    match arguments:
        case ["print", samples, *part] if len(part) < 2:
            print_samples(Path(samples), part[0] if part else None)
        case ["machine"]:
            print(json.dumps(machine(), indent=1))
        case ["save", samples, part, machine_file, command, docs]:
            save(Path(samples), part, Path(machine_file), command, Path(docs))
        case ["docs", *docs] if len(docs) < 2:
            make_docs(Path(docs[0] if docs else DOCS))
        case ["check", *docs] if len(docs) < 2:
            return check(Path(docs[0] if docs else DOCS))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

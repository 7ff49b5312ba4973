#!/usr/bin/env python3
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
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

OURS = ("inception-run", "inception-oci")
AIM = "(aim)"
BLOCK = re.compile(r"(<!-- measured: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclass
class Spread:
    """A median with its first and third quartile."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> Spread | None:
        if not values:
            return None
        if len(values) == 1:
            return Spread(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(median, low, high)


@dataclass
class Metric:
    """What was measured of all candidates: their values by round."""

    name: str
    unit: str
    values: dict[str, dict[int, float]] = field(default_factory=dict)
    aim: float | None = None

    @property
    def group(self) -> str:
        return self.name.partition(": ")[0] if ": " in self.name else ""

    @property
    def label(self) -> str:
        return self.name.partition(": ")[2] or self.name

    @property
    def ours(self) -> str | None:
        return next((name for name in self.values if name in OURS), None)

    @property
    def peers(self) -> list[str]:
        return [name for name in self.values if name not in OURS]

    @property
    def more_is_better(self) -> bool:
        return self.unit.endswith("/s")

    def spread(self, candidate: str) -> Spread | None:
        return Spread.of(list(self.values[candidate].values()))

    def ratio(self, peer: str) -> Spread | None:
        """Ours through theirs, round by round."""
        ours = self.values[self.ours] if self.ours else {}
        theirs = self.values[peer]
        return Spread.of([ours[turn] / theirs[turn] for turn in ours if theirs.get(turn)])

    def verdict(self, peer: str, ratio: Spread) -> str:
        """Where ours is, if the whole spread is on one side. A bound is not a peer."""
        if peer.startswith("(") and peer != AIM:
            return ""
        if ratio.low <= 1 <= ratio.high:
            return "level"
        return "ahead" if (ratio.low > 1) == self.more_is_better else "behind"


@dataclass
class Part:
    """What a part of scripts/bench has found."""

    name: str
    metrics: dict[str, Metric] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(name: str, lines: list[dict]) -> Part:
        part = Part(name)
        for line in lines:
            if "missing" in line:
                part.missing[line["missing"]] = line["why"]
            elif "version" in line:
                part.versions[line["version"]] = line["is"]
            else:
                metric = part.metrics.setdefault(line["metric"], Metric(line["metric"], line["unit"]))
                if "aim" in line:
                    metric.aim = line["aim"]
                else:
                    metric.values.setdefault(line["candidate"], {})[line["round"]] = line["value"]
        part.metrics = {name: metric for name, metric in part.metrics.items() if metric.values}
        return part

    def groups(self) -> dict[str, list[Metric]]:
        groups: dict[str, list[Metric]] = {}
        for metric in self.metrics.values():
            groups.setdefault(metric.group, []).append(metric)
        return groups

    def rounds(self) -> int:
        return max((len(values) for metric in self.metrics.values() for values in metric.values.values()), default=0)


@dataclass
class Row:
    """A line of a table: a metric and one peer."""

    metric: str
    ours: str
    peer: str
    theirs: str
    ratio: str
    verdict: str


def number(value: float) -> str:
    """With three digits that mean something."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1 or value == 0:
        return f"{value:.2f}"
    return f"{value:.2g}" if size < 0.01 else f"{value:.3f}"


def shown(spread: Spread | None, unit: str = "") -> str:
    if spread is None:
        return ""
    text = f"{number(spread.median)} {unit}".strip()
    if spread.low == spread.high:
        return text
    return f"{text} ({number(spread.low)}–{number(spread.high)})"


def rows(metric: Metric) -> list[Row]:
    found = []
    ours = metric.spread(metric.ours) if metric.ours else None
    for peer in metric.peers:
        ratio = metric.ratio(peer)
        verdict = metric.verdict(peer, ratio) if ratio else ""
        theirs = shown(metric.spread(peer), metric.unit)
        found.append(Row("", "", peer, theirs, shown(ratio), verdict))
    if metric.aim is not None and ours:
        ratio = Spread(ours.median / metric.aim, ours.low / metric.aim, ours.high / metric.aim)
        verdict = {"behind": "missed", "ahead": "met"}.get(metric.verdict(AIM, ratio), "level")
        found.append(Row("", "", AIM, f"{number(metric.aim)} {metric.unit}".strip(), shown(ratio), verdict))
    if not found:
        found.append(Row("", "", "", "", "", ""))
    found[0].metric = metric.label
    found[0].ours = shown(ours, metric.unit)
    return found


HEADER = Row("", "ours", "beside", "theirs", "ratio", "")


def cells(row: Row) -> list[str]:
    return [row.metric, row.ours, row.peer, row.theirs, row.ratio, row.verdict]


def for_terminal(part: Part) -> str:
    out = [f"\n{part.name}: medians of {part.rounds()} rounds (first to third quartile); ratio: ours / theirs, round by round"]
    if part.versions:
        out.append("; ".join(f"{name} {text}" for name, text in part.versions.items()))
    tables = {group: [row for metric in metrics for row in rows(metric)] for group, metrics in part.groups().items()}
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
        out.extend(f"skipped: {name}: {why}" for name, why in part.missing.items())
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
    """One line for each sample, so that versions of the file can be compared."""
    head = {
        "part": part,
        "date": datetime.date.today().isoformat(),
        "command": command,
        "machine": json.loads(machine_file.read_text()),
    }
    lines = [line for line in read(samples) if line.pop("part") == part]
    text = json.dumps(head, indent=1)[:-2] + ',\n "samples": [\n'
    text += ",\n".join("  " + json.dumps(line) for line in lines) + "\n ]\n}\n"
    kept = docs / "benchmarks" / f"{part}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(text)


def main(arguments: list[str]) -> int:
    match arguments:
        case ["print", samples, *part] if len(part) < 2:
            print_samples(Path(samples), part[0] if part else None)
        case ["machine"]:
            print(json.dumps(machine(), indent=1))
        case ["save", samples, part, machine_file, command, docs]:
            save(Path(samples), part, Path(machine_file), command, Path(docs))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

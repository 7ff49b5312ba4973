"""What scripts/bench has measured: metrics, their values by candidate and round, medians, spreads and ratios."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

# The candidates that are ours.
OURS = ("inception-run", "inception-oci")
# What stands where a peer does, when it is a number that the project has set itself.
AIM = "(aim)"


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


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def is_bound(candidate: str) -> bool:
    """Not a peer, but what nobody can pass."""
    return candidate.startswith("(")


@dataclass(order=True)
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
        if is_bound(peer) and peer != AIM:
            return ""
        if ratio.low <= 1 <= ratio.high:
            return "level"
        return "ahead" if (ratio.low > 1) == self.more_is_better else "behind"


@dataclass
class Part:
    """What a part of scripts/bench has found."""

    name: str
    metrics: dict[str, Metric] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(name: str, lines: list[dict]) -> Part:
        part = Part(name)
        for line in lines:
            if "missing" in line:
                if (line["missing"], line["why"]) not in part.missing:
                    part.missing.append((line["missing"], line["why"]))
            elif "version" in line:
                part.versions[line["version"]] = line["is"]
            elif "aim" not in line:
                metric = part.metrics.setdefault(line["metric"], Metric(line["metric"], line["unit"]))
                metric.values.setdefault(line["candidate"], {})[line["round"]] = line["value"]
        for line in lines:
            if "aim" in line and line["metric"] in part.metrics:
                part.metrics[line["metric"]].aim = line["aim"]
        return part

    def groups(self) -> dict[str, list[Metric]]:
        groups: dict[str, list[Metric]] = {}
        for metric in self.metrics.values():
            groups.setdefault(metric.group, []).append(metric)
        return groups

    def rounds(self) -> int:
        return max((len(values) for metric in self.metrics.values() for values in metric.values.values()), default=0)

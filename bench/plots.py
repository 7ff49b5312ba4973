"""The plots of docs/benchmarks.md. Their names are known without matplotlib; drawing them needs it.

Black on white: a picture in a page does not know whether the page is dark.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

from samples import OURS as SELF
from samples import Metric, Part, Spread, capital, is_bound, number

# Of a palette that people who see fewer colours can tell apart.
OURS = "#0072b2"
PEER = "#a8b0b8"
BOUND = "#ffffff"
EDGE = "#7a838c"
AHEAD, LEVEL, BEHIND = "#0072b2", "#7a838c", "#d55e00"
LINES = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK = "#24292f"
RULE = "#d0d7de"
# What is better or worse by more than this is an arrow at the edge of the ratios.
FURTHEST = 100
# Inches that a character is wide and a line high.
CHARACTER, LINE = 0.072, 0.22
COUNTED = re.compile(r"([\d,]+) \w")


def file_name(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-") + ".svg"


def counts(part: Part) -> dict[str, int]:
    """The number of each group, if all groups are numbers of something."""
    found = {group: COUNTED.match(group) for group in part.groups()}
    if len(found) < 2 or not all(found.values()):
        return {}
    return {group: int(match[1].replace(",", "")) for group, match in found.items()}


def compared(part: Part) -> list[tuple[Metric, str, Spread]]:
    """Every metric beside every peer, with the ratio that they have."""
    pairs = []
    for metric in (metric for metrics in part.groups().values() for metric in metrics):
        for peer in metric.peers:
            ratio = metric.ratio(peer)
            if ratio and ratio.low > 0 and not is_bound(peer):
                pairs.append((metric, peer, ratio))
    return pairs


def ratios_name(part: Part) -> str | None:
    return file_name(part.name, "ratios") if compared(part) else None


def lines_name(part: Part) -> str | None:
    return file_name(part.name, "lines") if counts(part) else None


def values_name(part: Part, group: str) -> str | None:
    """Of a group's bars; what is drawn as lines has none, nor has what has nothing beside it."""
    if counts(part) or not any(metric.peers for metric in part.groups()[group]):
        return None
    return file_name(part.name, group or "values")


def draw(part: Part, directory: Path) -> None:
    """All plots of a part, in place of those that are there."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "inception-run",
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "text.color": INK,
            "axes.edgecolor": RULE,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    for old in directory.glob(f"{part.name}-*.svg"):
        old.unlink()
    if ratios_name(part):
        save(draw_ratios(part), directory / ratios_name(part))
    for group, metrics in part.groups().items():
        if values_name(part, group):
            save(draw_values([metric for metric in metrics if metric.peers]), directory / values_name(part, group))
    if lines_name(part):
        save(draw_lines(part), directory / lines_name(part))


def save(figure, path: Path) -> None:
    import matplotlib.pyplot

    text = io.StringIO()
    nothing_that_changes = {"Date": None, "Creator": None}
    figure.savefig(text, format="svg", facecolor="white", bbox_inches="tight", pad_inches=0.15, metadata=nothing_that_changes)
    matplotlib.pyplot.close(figure)
    # Who looks at it may have other fonts.
    path.write_text(text.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif"))


def advantage(metric: Metric, ratio: Spread) -> Spread:
    """How many times better ours is: above 1 it is, whatever the unit."""
    if metric.more_is_better:
        return ratio
    return Spread(1 / ratio.median, 1 / ratio.high, 1 / ratio.low)


def canvas(width: float, height: float):
    """A figure and a way to put axes on it: left, top, width and height, in inches."""
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height))

    def place(left: float, top: float, across: float, down: float):
        return figure.add_axes((left / width, 1 - (top + down) / height, across / width, down / height))

    return figure, place


def draw_ratios(part: Part):
    """A line for each metric and peer: how many times better ours is, with its spread."""
    pairs = compared(part)
    shares = [advantage(metric, ratio) for metric, _, ratio in pairs]
    low = max(min([1 / 1.5, *(share.low for share in shares)]) / 1.15, 1 / FURTHEST)
    high = min(max([1.5, *(share.high for share in shares)]) * 1.15, FURTHEST)
    grouped = any(metric.group for metric, _, _ in pairs)
    # A group's name stands above its metrics.
    names = [name for metric, _, _ in pairs for name in (metric.label, metric.group)]
    peers_width = CHARACTER * max(len(peer) for _, peer, _ in pairs) + 0.2
    left, across = CHARACTER * 1.05 * max(map(len, names)) + peers_width, 4.6
    down = LINE * (len(pairs) + (len({metric.group for metric, _, _ in pairs}) if grouped else 0))
    figure, place = canvas(left + across + 0.7, down + 0.8)
    axes = place(left, 0.3, across, down)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(down / LINE - 0.5, -0.5)
    axes.axvspan(low, 1, color=BEHIND, alpha=0.06, linewidth=0)
    axes.axvspan(1, high, color=AHEAD, alpha=0.06, linewidth=0)
    axes.axvline(1, color=INK, linewidth=1)
    inches = axes.get_yaxis_transform()
    colours = {"ahead": AHEAD, "level": LEVEL, "behind": BEHIND}
    before = None
    y = 0
    for (metric, peer, ratio), share in zip(pairs, shares):
        if before and metric is not before:
            axes.plot([-left / across, 1], [y - 0.5] * 2, transform=inches, color=RULE, linewidth=0.6, clip_on=False)
        if grouped and (before is None or metric.group != before.group):
            axes.text(-left / across, y, capital(metric.group), transform=inches, va="center", fontweight="bold")
            y += 1
        if metric is not before:
            axes.text(-left / across, y, metric.label, transform=inches, va="center")
        colour = colours[metric.verdict(peer, ratio)]
        axes.plot([share.low, share.high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        within = min(max(share.median, low), high)
        mark = "o" if within == share.median else ">" if within == high else "<"
        axes.plot([within], [y], mark, color=colour, markersize=5, clip_on=False)
        axes.text(1 + 0.08 / across, y, f"{number(share.median)} ×", transform=inches, va="center", color=colour)
        axes.text(-0.1 / across, y, peer, transform=inches, va="center", ha="right")
        before = metric
        y += 1
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    plain_ticks(axes.xaxis, low, high)
    axes.set_xlabel("times better than the peer (logarithmic)")
    axes.annotate("← worse", (1, -0.5), xytext=(-6, 4), textcoords="offset points", ha="right", color=BEHIND)
    axes.annotate("better →", (1, -0.5), xytext=(6, 4), textcoords="offset points", ha="left", color=AHEAD)
    return figure


def plain_ticks(axis, low: float, high: float) -> None:
    """Numbers as people write them on a logarithmic axis: 1, 2, 5, 10, or tens alone if there are many."""
    digits = (1, 2, 5) if high / low < 200 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    places = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    ticks_at(axis, [place for place in places if low <= place <= high])


def ticks_at(axis, places: list[float]) -> None:
    from matplotlib import ticker

    axis.set_major_locator(ticker.FixedLocator(places))
    axis.set_major_formatter(ticker.FuncFormatter(lambda place, _: f"{place:,.10g}"))
    axis.set_minor_locator(ticker.NullLocator())


def title(metric_label: str, unit: str) -> str:
    direction = "more is better" if unit.endswith("/s") else ""
    notes = ", ".join(filter(None, [unit, direction]))
    return f"{metric_label} ({notes})" if notes else metric_label


def draw_values(metrics: list[Metric]):
    """A panel for each metric, a bar for each candidate, from the first to the third quartile a line."""
    columns = min(2, len(metrics))
    lines = [metrics[start : start + columns] for start in range(0, len(metrics), columns)]
    names = CHARACTER * max(len(name) for metric in metrics for name in metric.values) + 0.1
    across, gap, head = 2.5, 0.35, 0.3
    panel = names + across + 0.6
    downs = [LINE * max(len(metric.values) for metric in line) + head + 0.2 for line in lines]
    figure, place = canvas(columns * panel + (columns - 1) * gap, sum(downs))
    top = 0.0
    for line, down in zip(lines, downs):
        for column, metric in enumerate(line):
            left = column * (panel + gap)
            axes = place(left + names, top + head, across, LINE * len(metric.values))
            draw_bars(metric, axes)
            axes.annotate(
                title(metric.label, metric.unit), (0, 1), xycoords="axes fraction",
                xytext=(-names * 72, 5), textcoords="offset points", fontweight="bold",
            )  # fmt: skip
        top += down
    return figure


def draw_bars(metric: Metric, axes) -> None:
    candidates = ([metric.ours] if metric.ours else []) + metric.peers
    top = 0.0
    for y, candidate in enumerate(candidates):
        spread = metric.spread(candidate)
        ours, bound = candidate == metric.ours, is_bound(candidate)
        fill = OURS if ours else BOUND if bound else PEER
        axes.barh(y, spread.median, height=0.66, color=fill, edgecolor=EDGE if bound else fill, linewidth=0.8)
        if spread.low < spread.high:
            axes.plot([spread.low, spread.high], [y, y], color=INK, linewidth=1)
        axes.annotate(
            number(spread.median), (max(spread.high, 0), y), xytext=(4, 0), textcoords="offset points",
            va="center", fontweight="bold" if ours else "normal",
        )  # fmt: skip
        top = max(top, spread.high)
    axes.set_xlim(0, top or 1)
    axes.set_ylim(len(candidates) - 0.5, -0.5)
    axes.set_yticks(range(len(candidates)), candidates)
    axes.tick_params(axis="y", length=0)
    # The numbers are at the bars.
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def draw_lines(part: Part):
    """A panel for each metric, a line for each candidate, over the numbers that the groups are of."""
    numbers = counts(part)
    labels = list(dict.fromkeys(metric.label for metric in part.metrics.values()))
    every = dict.fromkeys(name for metric in part.metrics.values() for name in metric.values)
    peers = [name for name in every if name not in SELF]
    columns, across, down, beside, below = min(2, len(labels)), 3.4, 2.4, 0.9, 0.75
    rows = math.ceil(len(labels) / columns)
    figure, place = canvas(columns * (across + beside), rows * (down + below))
    for index, label in enumerate(labels):
        row, column = divmod(index, columns)
        axes = place(beside + column * (across + beside), 0.3 + row * (down + below), across, down)
        metrics = [metric for metric in part.metrics.values() if metric.label == label]
        everything = []
        for candidate in every:
            points = sorted((numbers[m.group], m.spread(candidate)) for m in metrics if candidate in m.values)
            if not points:
                continue
            ours = candidate in SELF
            colour = OURS if ours else LINES[peers.index(candidate) % len(LINES)]
            places = [count for count, _ in points]
            axes.plot(
                places, [spread.median for _, spread in points], "o-", color=colour,
                linewidth=2.2 if ours else 1.3, markersize=4, label=candidate,
            )  # fmt: skip
            axes.vlines(places, [spread.low for _, spread in points], [spread.high for _, spread in points], color=colour)
            everything += [value for _, spread in points for value in (spread.low, spread.high) if value > 0]
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks_at(axes.xaxis, sorted(numbers.values()))
        axes.set_ylim(min(everything) / 1.5, max(everything) * 1.5)
        plain_ticks(axes.yaxis, min(everything) / 1.5, max(everything) * 1.5)
        axes.set_title(title(label, metrics[0].unit), fontsize=9, loc="left", fontweight="bold")
        axes.grid(color="#eaeef2", linewidth=0.8)
        axes.legend(frameon=False, fontsize=8)
    return figure

#!/usr/bin/python3
"""Tests of what bench/report.py makes of samples; without matplotlib."""

from __future__ import annotations

import sys
import tempfile
import unittest
from pathlib import Path

sys.dont_write_bytecode = True

import plots  # noqa: E402
import report  # noqa: E402
from samples import Part, Spread, number  # noqa: E402


def lines(metric: str, unit: str, values: dict[str, list[float]]) -> list[dict]:
    return [
        {"metric": metric, "candidate": candidate, "unit": unit, "round": turn, "value": value}
        for candidate, all_of_it in values.items()
        for turn, value in enumerate(all_of_it, 1)
    ]


class Samples(unittest.TestCase):
    def test_ratios_are_made_pair_by_pair(self) -> None:
        # A disturbed round disturbs both; the medians through each other would say something else.
        part = Part.of("p", lines("m", "ms", {"inception-run": [1, 20, 3], "peer": [2, 40, 6]}))
        self.assertEqual(part.metrics["m"].ratio("peer"), Spread(0.5, 0.5, 0.5))

    def test_rounds_that_one_lacks_are_no_pairs(self) -> None:
        samples = lines("m", "ms", {"inception-run": [1, 2, 3], "peer": [1, 1, 1]})
        del samples[-1]
        self.assertEqual(Part.of("p", samples).metrics["m"].ratio("peer"), Spread(1.5, 1.25, 1.75))

    def test_more_is_better_for_rates_only(self) -> None:
        for unit, verdict in [("ms", "behind"), ("Gb/s", "ahead"), ("/s", "ahead"), ("", "behind")]:
            metric = Part.of("p", lines("m", unit, {"inception-run": [3, 4], "peer": [2, 2]})).metrics["m"]
            self.assertEqual(metric.verdict("peer", metric.ratio("peer")), verdict, unit)

    def test_a_spread_on_both_sides_is_level(self) -> None:
        metric = Part.of("p", lines("m", "ms", {"inception-run": [1, 2, 3, 4], "peer": [2.5] * 4})).metrics["m"]
        self.assertEqual(metric.verdict("peer", metric.ratio("peer")), "level")

    def test_a_bound_is_no_peer(self) -> None:
        metric = Part.of("p", lines("m", "ms", {"inception-run": [2], "(least)": [1]})).metrics["m"]
        self.assertEqual(metric.verdict("(least)", metric.ratio("(least)")), "")

    def test_numbers_have_three_digits_that_mean_something(self) -> None:
        values = [26834.1, 99.96, 12.345, 1.5, 0.1666, 0.00014, 0]
        self.assertEqual([number(value) for value in values], ["26,834", "100.0", "12.3", "1.50", "0.167", "0.00014", "0.00"])


class Documents(unittest.TestCase):
    def setUp(self) -> None:
        kept = tempfile.TemporaryDirectory()
        self.addCleanup(kept.cleanup)
        self.docs = Path(kept.name)
        self.samples = self.docs / "samples.jsonl"
        (self.docs / "machine.json").write_text(report.json.dumps(report.machine()))
        (self.docs / "benchmarks.md").write_text("Before\n<!-- measured: exec -->\n<!-- end -->\nafter\n")

    def save(self, values: dict[str, list[float]]) -> None:
        found = [{"part": "exec", **line} for line in lines("exec", "ms", values)]
        found.append({"part": "exec", "missing": "podman", "why": "not \"here\""})
        self.samples.write_text("\n".join(map(report.json.dumps, found)) + "\n")
        report.save(self.samples, "exec", self.docs / "machine.json", "scripts/bench exec", self.docs)

    def test_what_is_behind_is_said_and_only_that(self) -> None:
        self.save({"inception-run": [2, 2], "quick": [1, 1], "slow": [3, 3]})
        text = report.document(self.docs)
        self.assertIn("| exec | 2.00 ms | quick | 1.00 ms | 2.00 | **behind** |\n", text)
        self.assertIn("Where we lose:\n\n- exec, beside quick: 2.00 beside 1.00 ms, ratio 2.00\n\nNot measured: podman", text)
        self.assertTrue(text.startswith("Before\n") and text.endswith("after\n"))

    def test_a_missed_aim_is_said(self) -> None:
        metric = Part.of("p", [*lines("m", "ms", {"inception-run": [6, 7]}), {"metric": "m", "unit": "ms", "aim": 5}])
        self.assertIn("- m: 6.50 ms, the aim was 5.00", report.losses(metric))

    def test_what_was_not_measured_is_said(self) -> None:
        self.assertIn("Not measured yet.", report.document(self.docs))

    def test_the_check_fails_for_other_data(self) -> None:
        self.save({"inception-run": [2, 2], "quick": [1, 1]})
        (self.docs / "benchmarks.md").write_text(report.document(self.docs))
        self.assertEqual(report.wrong(self.docs), [])
        self.save({"inception-run": [2, 3], "quick": [1, 1]})
        self.assertEqual(len(report.wrong(self.docs)), 1)

    def test_the_check_fails_for_data_without_a_place(self) -> None:
        self.save({"inception-run": [2, 2]})
        (self.docs / "benchmarks.md").write_text("nothing\n")
        self.assertEqual(len(report.wrong(self.docs)), 1)

    def test_groups_that_are_numbers_are_a_line(self) -> None:
        samples = lines("1 container: start", "s", {"inception-run": [1], "peer": [2]})
        samples += lines("10 containers: start", "s", {"inception-run": [3], "peer": [4]})
        part = Part.of("scale", samples)
        self.assertEqual(plots.lines_name(part), "scale-lines.svg")
        self.assertEqual([plots.values_name(part, group) for group in part.groups()], [None, None])


if __name__ == "__main__":
    unittest.main()

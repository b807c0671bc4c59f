"""Draws a result of the benchmarks as pictures: `python -m tests.benchmarks.plots RESULT.json
DIRECTORY`.

It needs matplotlib, which nothing else here does: `.venv/bin/pip install matplotlib`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT_EACH, DPI = 9.0, 0.45, 120
MET, MISSED, NO_AIM = "#2a7f62", "#b5442e", "#5b7083"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.plots", description="Draw a benchmark's result."
    )
    parser.add_argument("result", type=Path, help="the JSON file that the benchmarks wrote")
    parser.add_argument("directory", type=Path, help="the folder for the PNG files")
    options = parser.parse_args(arguments)
    try:
        result = json.loads(options.result.read_text())
        charts, rates = bars(result), growth(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(
            f"{options.result}: not a result of the benchmarks: {type(error).__name__}: {error}",
            file=sys.stderr,
        )
        return 2
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        print("plots need matplotlib: .venv/bin/pip install matplotlib", file=sys.stderr)
        return 1
    matplotlib.use("Agg")
    options.directory.mkdir(parents=True, exist_ok=True)
    pyplot = importlib.import_module("matplotlib.pyplot")
    drawn: tuple[tuple[Callable[..., None], Mapping[str, Any]], ...] = (
        (_draw_bars, charts),
        (_draw_lines, rates),
    )
    for draw, pictures in drawn:
        for title, content in pictures.items():
            path = options.directory / f"{title.replace(' ', '-')}.png"
            draw(pyplot, title, content, path)
            print(path)
    return 0


Bar = tuple[str, float, float | None, bool]
"""What it is, its value, its aim, and whether that is met."""


def bars(result: dict[str, Any]) -> dict[str, list[Bar]]:
    """A chart for each benchmark and unit, as its bars.

    Raises:
        KeyError, TypeError: it is no result of the benchmarks.
    """
    charts: defaultdict[str, list[Bar]] = defaultdict(list)
    for one in result["comparisons"]:
        case = one["case"]
        what = f"{_named(case)}, against {one['against']}"
        charts[f"{one['benchmark']} ratio"].append(
            (what, one["ratio"]["median"], one["aim"], one["met"])
        )
    for one in result["figures"]:
        unit = one["unit"].replace("/", " per ").replace("%", "percent")
        charts[f"{one['benchmark']} in {unit}"].append(
            (one["what"], one["value"], one["at_most"], one["met"])
        )
    return dict(charts)


def growth(result: dict[str, Any]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """A chart for each benchmark that compares: the rates of all that were run, by the number of
    executions that Kestra had before.

    Raises:
        KeyError, TypeError: it is no result of the benchmarks.
    """
    charts: defaultdict[str, defaultdict[str, set[tuple[int, float]]]] = defaultdict(
        lambda: defaultdict(set)
    )
    for one in result["comparisons"]:
        case = one["case"]
        for run in one["runs"]:
            who = run["who"]
            if who == one["measured"]:
                who = f"{who}, {_named(case)}"
            charts[f"{one['benchmark']} rate"][who].add(
                (run["executions_before"], run["jobs_per_second"])
            )
    return {
        title: {who: sorted(points) for who, points in lines.items()}
        for title, lines in charts.items()
    }


def _named(case: Mapping[str, Any]) -> str:
    return f"prefetch {case['prefetch']}, {case['deduplicate']}"


def _draw_lines(
    pyplot: Any, title: str, lines: Mapping[str, Sequence[tuple[int, float]]], path: Path
) -> None:
    figure, axes = pyplot.subplots(figsize=(WIDTH, 0.6 * WIDTH), layout="constrained")
    for who, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=who)
    axes.set_xlabel("executions that Kestra had before")
    axes.set_ylabel("jobs a second")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def _draw_bars(pyplot: Any, title: str, rows: Sequence[Bar], path: Path) -> None:
    figure, axes = pyplot.subplots(
        figsize=(WIDTH, 1.2 + HEIGHT_EACH * len(rows)), layout="constrained"
    )
    for number, (what, value, aim, met) in enumerate(reversed(rows)):
        color = NO_AIM
        if aim is not None:
            color = MET if met else MISSED
        axes.barh(what, value, color=color)
        axes.annotate(f" {value:.3g}", (value, number), va="center")
        if aim is not None:
            axes.plot([aim, aim], [number - 0.4, number + 0.4], color="black")
    axes.set_title(f"{title} (line: the aim)")
    axes.margins(x=0.12)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())

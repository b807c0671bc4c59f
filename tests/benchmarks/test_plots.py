"""Which charts a result has. What matplotlib makes of them is for eyes to judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.plots import bars, growth, main

COMPARISON = {
    "benchmark": "own",
    "case": {"prefetch": 8, "deduplicate": "always"},
    "measured": "bridge",
    "against": "bare loop",
    "ratio": {"median": 0.84, "min": 0.78, "max": 0.89},
    "aim": 0.8,
    "met": True,
    "runs": [
        {"who": "bridge", "executions_before": 1000, "jobs_per_second": 350.0},
        {"who": "bare loop", "executions_before": 2000, "jobs_per_second": 450.0},
        {"who": "bridge", "executions_before": 0, "jobs_per_second": 360.0},
    ],
}
FIGURE = {
    "benchmark": "peers",
    "what": "rate",
    "value": 4.5,
    "unit": "jobs/s",
    "at_most": None,
    "met": True,
}


def test_comparisons_are_a_chart_of_ratios() -> None:
    charts = bars({"comparisons": [COMPARISON], "figures": []})
    assert charts == {"own ratio": [("prefetch 8, always, against bare loop", 0.84, 0.8, True)]}


def test_rates_are_a_chart_by_how_many_executions_there_were() -> None:
    assert growth({"comparisons": [COMPARISON]}) == {
        "own rate": {
            "bridge, prefetch 8, always": [(0, 360.0), (1000, 350.0)],
            "bare loop": [(2000, 450.0)],
        }
    }


def test_figures_of_different_units_are_different_charts() -> None:
    charts = bars({"comparisons": [], "figures": [FIGURE, {**FIGURE, "unit": "%"}]})
    assert list(charts) == ["peers in jobs per s", "peers in percent"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"comparisons": [{}], "figures": []}', "not JSON"]
)
def test_what_is_no_result_is_one_line_and_wrong_usage(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = tmp_path / "result.json"
    result.write_text(text)
    assert (main([str(result), str(tmp_path)]), capsys.readouterr().err.count("\n")) == (2, 1)

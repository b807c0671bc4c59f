"""What a job used of machines, and what that cost."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.job.machine_use import MachineUse, seconds_in_outputs, use_in_headers

PRICES = {"small": 0.36, "large": 3.6}


def machine(size: Any, seconds: Any) -> dict[str, Any]:
    return {"machine": {"size": size, "seconds": seconds}}


def test_the_seconds_of_an_attempt_are_added_by_size() -> None:
    before = MachineUse({"small": 10.0})
    assert before.plus({"small": 5.5, "large": 1.0}, prices={}).seconds == {
        "small": 15.5,
        "large": 1.0,
    }


def test_the_cost_follows_from_the_prices_of_an_hour() -> None:
    assert MachineUse({"small": 10.0}).plus({"large": 100.0}, prices=PRICES).cost == 0.101


@pytest.mark.parametrize("seconds", [{}, {"small": 1.0, "huge": 1.0}])
def test_there_is_no_cost_without_a_machine_or_without_its_price(
    seconds: dict[str, float],
) -> None:
    assert MachineUse().plus(seconds, prices=PRICES).cost is None


@pytest.mark.parametrize(
    "use",
    [
        MachineUse(),
        MachineUse({"small": 10.25}),
        MachineUse({"small": 10.25, "t3.large": 1.0}, 0.000001),
    ],
)
def test_a_message_keeps_it_in_headers(use: MachineUse) -> None:
    assert use_in_headers(use.headers) == use


@pytest.mark.parametrize(
    "headers",
    [
        {"x-bridge-machine-seconds": 5},
        {"x-bridge-machine-seconds": "5"},
        {"x-bridge-machine-seconds": "{"},
        {"x-bridge-machine-seconds": "[" * 100_000},
        {"x-bridge-machine-seconds": '{"small": NaN, "large": 1' + "0" * 400 + "}"},
        {"x-bridge-machine-seconds": '{"small": "x", "": 1, "large": -1, "huge": 1e999}'},
        {"x-bridge-machine-seconds": str(dict.fromkeys(range(100), 1)).replace("'", '"')},
        {"x-bridge-machine-seconds": '{"small": 1}', "x-bridge-machine-cost": "much"},
    ],
)
def test_headers_of_another_s_making_say_nothing(headers: dict[str, Any]) -> None:
    assert use_in_headers(headers) == MachineUse()


def test_a_job_s_outputs_tell_the_seconds_of_its_machine() -> None:
    assert seconds_in_outputs({"results": {}, **machine("small", 12.5)}) == {"small": 12.5}


def test_a_batch_s_outputs_tell_the_seconds_of_all_its_machines() -> None:
    jobs: list[Any] = [
        machine("small", 1),
        machine("large", 2),
        machine("small", 3),
        {"machine": {}},
        None,
    ]
    assert seconds_in_outputs({"jobs": jobs}) == {"small": 4.0, "large": 2.0}


@pytest.mark.parametrize(
    "outputs",
    [
        {},
        {"jobs": {}, "machine": "small"},
        machine("", 1),
        machine("small", 0),
        machine("small", "1"),
        machine(None, 1),
        machine("x" * 101, 1),
    ],
)
def test_other_outputs_tell_nothing(outputs: dict[str, Any]) -> None:
    assert seconds_in_outputs(outputs) == {}


def test_it_is_told_on_one_line() -> None:
    assert MachineUse({"small": 10.5, "large": 1.0}, 0.25).words == (
        "1 s of large, 10.5 s of small, cost 0.25"
    )

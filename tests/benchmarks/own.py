"""The bridge's own cost: jobs per second with a stand-in for Kestra that answers at once, against
the bare loop."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.local.processes import Child
from tests.benchmarks.kestra import Kestra
from tests.benchmarks.measure import DEDUPLICATES, Case, Comparison, Run, figures
from tests.benchmarks.stage import BenchmarkStage, Consumer, standin

AIM = 0.8
CASES = tuple(Case(prefetch, deduplicate) for deduplicate in DEDUPLICATES for prefetch in (8, 64))
WHO: tuple[Consumer, ...] = ("bridge", "bare loop")


def compare(stage: BenchmarkStage, *, jobs: int, rounds: int) -> list[Comparison]:
    """All cases, round by round, the bridge and the bare loop in turn."""
    found = [Comparison("own", case, "bridge", "bare loop", AIM) for case in CASES]
    with standin(stage) as (child, kestra):
        bench = _Bench(stage, child, kestra, jobs)
        for number in range(1, rounds + 1):
            for comparison in found:
                for who in WHO:
                    run = bench.run(who, comparison.case, number)
                    comparison.runs.append(run)
                    what = f"own cost, {comparison.case}, round {number} of {rounds}"
                    stage.say(f"{what}: {who} {run.jobs_per_second:.0f} jobs/s")
    return found


@dataclass(frozen=True, slots=True)
class _Bench:
    stage: BenchmarkStage
    standin: Child
    kestra: Kestra
    jobs: int

    def run(self, who: Consumer, case: Case, number: int) -> Run:
        before = self.kestra.count()
        self.stage.fill(self.jobs)
        with (
            self.stage.consumer(
                who, self.jobs, {**self.kestra.settings, **case.settings}
            ) as consumer,
            self.stage.sampler(consumer=consumer.child.pid, kestra=self.standin.pid) as sampler,
        ):
            timeline, asked = consumer.timeline(), consumer.asked()
        self.stage.check(who, executions=self.kestra.count() - before, jobs=self.jobs)
        return figures(
            timeline.without_warm_up(),
            sampler,
            who=who,
            round_=number,
            before=before,
            asked=asked,
        )

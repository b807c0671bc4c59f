"""`kestra-bridge submit`: put jobs on the queue, and wait for their results if asked to."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated

import typer

from bridge.cli import streams
from bridge.cli.common import FAILED, Json, load, seconds
from bridge.cli.screen import named
from bridge.cli.signals import Signalled, carry_out
from bridge.cli.submit_input import SingleJob, read_file
from bridge.cli.submit_view import Bars, Output, progress_bars
from bridge.errors import BrokerUnavailable, SettingsError
from bridge.operate.submission import jobs
from bridge.operate.submission.batch import Batch, JobResult
from bridge.operate.submission.files import Format
from bridge.operate.submission.publish import collect_results, publish_all
from bridge.rabbitmq.broker import Broker
from bridge.settings import BrokerSettings, lane_named

EXAMPLES = """\b
Examples:
  kestra-bridge submit --flow bridge.jobs/example --input message=hello --priority 9
  kestra-bridge submit --file jobs.csv --wait --wait-timeout 600
  jq -c '.[]' jobs.json | kestra-bridge submit --file - --json

\b
A line of JSON; every field is optional:
  {"id": "a-1", "flow": "bridge.jobs/example", "priority": 5, "timeout": 600,
   "inputs": {"seconds": 3}, "labels": {"team": "blue"}}

\b
The same as CSV; every value is a text, and an empty cell counts as missing:
  id,flow,priority,timeout,input.seconds,label.team
  a-1,bridge.jobs/example,5,600,3,blue

Settings: BRIDGE_AMQP_URL; BRIDGE_QUEUE or BRIDGE_LANES, BRIDGE_AMQP_CA and BRIDGE_MAX_PRIORITY if
they differ from the defaults. A queue that doesn't exist yet is declared as the bridge would
declare it with the same settings.

A job in a file that has no id gets one made from its content; equal jobs get different ids by their
order. So a file can be submitted again after an interruption: the jobs that were submitted before
don't run again. --new-ids runs all of them anew.

Exit status: 0 all submitted (with --wait: all succeeded), 1 not all, 2 wrong usage, settings or
jobs, 130 or 143 interrupted by Ctrl-C or SIGTERM.
"""


app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(epilog=EXAMPLES, short_help="Put jobs on the queue.")
def submit(
    *,
    flow: Annotated[
        str | None,
        typer.Option(
            metavar="NAMESPACE/ID", help="The flow to run. Default: the flow of the queue's lane."
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="NAME=VALUE", help="An input; the value is a text. Repeatable."
        ),
    ] = None,
    inputs_json: Annotated[
        str | None,
        typer.Option(
            metavar="OBJECT", help="Inputs as a JSON object, for numbers, lists and the like."
        ),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label", metavar="NAME=VALUE", help="A label for the execution. Repeatable."
        ),
    ] = None,
    priority: Annotated[
        int | None, typer.Option(help="The higher, the sooner.", min=0, max=255)
    ] = None,
    job_id: Annotated[
        str | None,
        typer.Option(
            "--id", help="The job's id; a job runs only once for each id. Default: a random one."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        seconds(
            help="Kill the execution after this time. Default: the bridge's limit.",
        ),
    ] = None,
    queue: Annotated[str | None, typer.Option(help="The queue. Default: BRIDGE_QUEUE.")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|-",
            help="Many jobs, from a file or standard input; --flow, --priority, --timeout fill in "
            "what a line lacks.",
        ),
    ] = None,
    style: Annotated[
        Format,
        typer.Option("--format", help="The file's format; 'auto' looks at name and content."),
    ] = "auto",
    new_ids: Annotated[
        bool,
        typer.Option(
            "--new-ids",
            help="With --file: run its jobs anew, even if the same file was submitted before.",
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the results; fail unless every job succeeded.")
    ] = False,
    wait_timeout: Annotated[
        float | None,
        seconds(
            help="With --wait: give up waiting after this time.",
            min=0,
            max=31_536_000,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put one job on the queue, or the jobs of a file, and print their ids.

    All jobs are checked before the first is published. A job is printed once RabbitMQ has confirmed
    it.
    """
    if wait_timeout is not None and not wait:
        raise SettingsError("--wait-timeout needs --wait")
    if new_ids and file is None:
        raise SettingsError(
            "--new-ids needs --file: a single job has a new id unless --id gives it one"
        )
    single = SingleJob(inputs=inputs, inputs_json=inputs_json, labels=labels, job_id=job_id)
    ids: jobs.IdSource = jobs.random_id
    if file is None:
        drafts = [single.draft(flow=flow)]
    else:
        drafts = read_file(file, style, single)
        if not new_ids:
            ids = jobs.IdsByContent()
    drafts = [draft.filled(flow=flow, priority=priority, timeout=timeout) for draft in drafts]
    settings = _for_queue(load(BrokerSettings, json_logs=as_json), queue)
    batch = Batch(jobs=jobs.judge(drafts, max_priority=settings.max_priority, ids=ids))
    output = Output(as_json=as_json, queue=settings.all_lanes[0].queue)
    _run(settings, batch, output, wait=wait, limit=wait_timeout)


def _run(
    settings: BrokerSettings, batch: Batch, output: Output, *, wait: bool, limit: float | None
) -> None:
    """Submit the batch, and wait for its results if asked to.

    Raises:
        Exit: a signal interrupted it, or not every job succeeded.
        OSError: the jobs could not be printed.
    """
    try:
        with progress_bars(len(batch.jobs)) as bars:
            carry_out(_submit(settings, batch, output, bars, wait=wait, limit=limit))
    except Signalled as ended:
        _say_interrupted(batch, output, wait=wait)
        raise typer.Exit(ended.code) from ended
    if output.failure:
        raise output.failure
    output.table(batch)
    if not wait:
        return
    if not batch.all_have_results:
        streams.say(f"no result within {limit:g} s from {named(batch.without_result)}")
    if not batch.all_succeeded:
        raise typer.Exit(FAILED)


def _for_queue(settings: BrokerSettings, queue: str | None) -> BrokerSettings:
    """The settings with only the lane of that queue.

    Raises:
        SettingsError: there is no such lane, or several and no queue is named.
    """
    lanes = settings.all_lanes
    if queue is None and len(lanes) > 1:
        raise SettingsError(
            f"--queue is needed: BRIDGE_LANES has {', '.join(lane.queue for lane in lanes)}"
        )
    if queue is None:
        return settings
    return settings.model_copy(update={"lanes": (lane_named(settings, queue, option="--queue"),)})


async def _submit(
    settings: BrokerSettings,
    batch: Batch,
    output: Output,
    bars: Bars,
    *,
    wait: bool,
    limit: float | None,
) -> None:
    """Publish the batch, and wait for its results if asked to, at most `limit` seconds.

    Raises:
        BrokerError: a job could not be published, or the connection was lost.
    """
    broker = Broker(settings, name="kestra-bridge submit")
    async with broker.commands() as session, AsyncExitStack() as stack:
        stack.enter_context(session.alarms_heard(streams.say))
        await session.ensure()
        reply_queue = await stack.enter_async_context(session.reply_queue()) if wait else None
        reply_to = reply_queue.name if reply_queue else None

        def confirmed() -> None:
            bars.submitted()
            if not wait:
                output.submitted(batch.announce())

        def arrived(result: JobResult) -> None:
            output.result(result)
            bars.ended()

        error = await publish_all(
            session.publisher, batch, queue=output.queue, reply_to=reply_to, confirmed=confirmed
        )
        if error or not wait:
            output.submitted(batch.announce(skip_gaps=True))
        if error:
            raise type(error)(f"{error}; {batch.count}")
        if reply_queue is None:
            return
        bars.waiting()
        try:
            await collect_results(reply_queue, batch, limit=limit, arrived=arrived)
        except BrokerUnavailable as lost:
            output.table(batch)
            raise BrokerUnavailable(
                f"{lost}; {batch.count}, and the result is not known of "
                f"{named(batch.without_result)}"
            ) from lost


def _say_interrupted(batch: Batch, output: Output, *, wait: bool) -> None:
    if not wait:
        output.submitted(batch.announce(skip_gaps=True))
    text = f"interrupted: {batch.count}"
    if batch.submitted or batch.in_doubt:
        text += "; what was submitted and has not ended goes on"
    streams.say(text)

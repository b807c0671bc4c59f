"""A message is either a job or refused in one line that says why; nothing else comes out of
decoding."""

from __future__ import annotations

import gzip
import json
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import exact_json
from bridge.errors import InvalidMessage
from bridge.job.decode import MAX_BODY, decode, json_schema
from bridge.job.flow_name import FlowName, allowed
from bridge.job.job import Job
from bridge.job.message import ATTEMPT, FIRST_ATTEMPT, MACHINES_LOST, Message

DEFAULT = FlowName("bridge.jobs", "example")
LONGEST_REQUEST_LINE = 4096


def decoded(
    body: Any = None, *, flow: FlowName | None = DEFAULT, max_priority: int = 10, **properties: Any
) -> Job:
    raw = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    return decode(Message(body=raw, **properties), default_flow=flow, max_priority=max_priority)


def refusal(body: Any = None, **properties: Any) -> str:
    with pytest.raises(InvalidMessage) as caught:
        decoded(body, **properties)
    return str(caught.value)


class TestDecoding:
    def test_takes_the_lanes_flow_where_the_body_names_none(self) -> None:
        assert decoded().flow == DEFAULT

    def test_takes_the_bodys_flow_before_the_lanes(self) -> None:
        assert decoded({"flow": "a.b/c"}).flow == FlowName("a.b", "c")

    def test_reads_every_part_of_a_message(self) -> None:
        body = {"flow": "a/b", "inputs": {"n": 1}, "labels": {"team": "blue"}, "timeout": 1.5}
        headers = {ATTEMPT: 3, FIRST_ATTEMPT: 2, MACHINES_LOST: 1}
        job = decoded(body, message_id="job-1", correlation_id="c-1", headers=headers, priority=10)
        assert job == Job(
            id="job-1",
            flow=FlowName("a", "b"),
            attempt=3,
            first_attempt=2,
            machines_lost=1,
            inputs={"n": 1},
            labels={"team": "blue"},
            timeout=1.5,
            correlation_id="c-1",
        )

    def test_leaves_out_an_input_that_is_null(self) -> None:
        assert decoded({"inputs": {"a": None, "b": 0, "c": "", "d": False}}).inputs == {
            "b": 0,
            "c": "",
            "d": False,
        }

    def test_keeps_inputs_as_they_are(self) -> None:
        inputs = {"a": [1, {"b": None}], "c": "$(rm -rf /)", "d": 1e-300, "e": 2**63}
        assert decoded({"inputs": inputs}).inputs == inputs

    @pytest.mark.parametrize(
        "number", ["1E5", "1.10", "-0", "1e-7", "0.1234567890123456789012345", "9" * 40, "0", "1.0"]
    )
    def test_keeps_the_text_of_a_number_wherever_it_stands(self, number: str) -> None:
        inputs = decoded(
            f'{{"inputs": {{"x": {number}, "y": {{"z": [{number}, "s"]}}}}}}'.encode()
        ).inputs
        assert exact_json.dumps(inputs) == f'{{"x": {number}, "y": {{"z": [{number}, "s"]}}}}'

    @pytest.mark.parametrize("name", ["flow", "inputs", "labels", "timeout"])
    def test_takes_a_null_for_nothing(self, name: str) -> None:
        assert decoded({name: None}) == decoded({})

    def test_takes_a_null_among_labels_for_nothing(self) -> None:
        assert decoded({"labels": {"team": None, "a": "b"}}).labels == {"a": "b"}

    def test_passes_over_a_byte_order_mark(self) -> None:
        assert decoded(b'\xef\xbb\xbf{"flow": "n/f"}').flow == FlowName("n", "f")

    def test_reads_json_whatever_encoding_is_said_of_it(self) -> None:
        assert decoded({}, content_encoding="utf-8").flow == DEFAULT

    def test_gives_a_message_without_an_id_an_empty_one(self) -> None:
        assert decoded().id == ""

    @pytest.mark.parametrize("correlation_id", ["a\\u0000", "", " padded ", "two\nlines", "\udcff"])
    def test_passes_over_a_correlation_id_that_can_not_be_a_label(
        self, correlation_id: str
    ) -> None:
        assert decoded(correlation_id=correlation_id).correlation_id is None

    @pytest.mark.parametrize("job_id", ["a", "x" * 200, "with space", "ü:😀,%/?#&=+", "1"])
    def test_takes_up_to_200_printable_characters_as_an_id(self, job_id: str) -> None:
        assert decoded(message_id=job_id).id == job_id


class TestRefusal:
    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (b"", "the body is empty"),
            (b"{", "the body is not JSON"),
            (b"\xff\xfe", "the body is in UTF-16"),
            (b'{"inputs": {"n": NaN}}', "the body is not JSON"),
            (b'{"inputs": {"text": "\\ud800"}}', "the body is not JSON"),
            (b"[" * 100_000, "the body is not JSON"),
            (b'{"inputs": {"n": ' + b"9" * 5000 + b"}}", "the body is not JSON"),
            (b" " * (MAX_BODY + 1), f"the body has {MAX_BODY + 1} bytes"),
            (b"null", "the body is a JSON null, not an object"),
            (b"[]", "the body is a JSON array, not an object"),
            (b"1.5", "the body is a JSON number, not an object"),
            (b"true", "the body is a JSON boolean, not an object"),
            (b'"text"', "the body is a JSON string, not an object"),
            ({"flow": "no-slash"}, "flow: must be namespace/id, such as"),
            ({"flow": "Upper/flow"}, "flow: must be namespace/id, such as"),
            ({"flow": "../../flows"}, "flow: must be namespace/id, such as"),
            ({"flow": "a/b/c"}, "flow: must be namespace/id, such as"),
            ({"flow": "a/b\n"}, "flow: must be namespace/id, such as"),
            ({"flow": "a" * 151 + "/b"}, "flow: must be namespace/id, such as"),
            ({"flow": 1}, "flow: Input should be a valid string"),
            ({"inputs": []}, "inputs: Input should be a valid dictionary"),
            ({"inputs": {"a b": 1}}, "inputs.a b: an input's name is a letter or digit"),
            ({"inputs": {"": 1}}, "inputs.: an input's name is a letter or digit"),
            (b'{"inputs": {"deep": [{"n": 1e999}]}}', "input deep has a number that is too large"),
            ({"labels": {"a": 1}}, "labels.a: Input should be a valid string"),
            ({"labels": {"Upper": "x"}}, "label 'Upper' is not a lower-case letter"),
            ({"labels": {"a:b": "x"}}, "label 'a:b' is not a lower-case letter"),
            ({"labels": {"system.correlationId": "x"}}, "label 'system.correlationId' is reserved"),
            ({"labels": {"bridge": "x"}}, "label 'bridge' is reserved"),
            ({"labels": {"bridgeJob": "x"}}, "label 'bridgeJob' is reserved"),
            ({"labels": {"a": ""}}, "label 'a' has a value that is empty"),
            ({"labels": {"a": " x"}}, "label 'a' has a value that is empty, padded"),
            (
                {"labels": {"a": "x\ny"}},
                "label 'a' has a value that is empty, padded or not printable",
            ),
            ({"labels": {"a": "x" * 2000}}, "the labels have 2"),
            ({"labels": {"a": "ü" * 400}}, "the labels have 2"),
            ({"timeout": 0}, "timeout: Input should be greater than 0"),
            ({"timeout": "10"}, "timeout: Input should be a valid number"),
            ({"timeout": True}, "timeout: Input should be a valid number"),
            (b'{"timeout": 1e999}', "timeout: Input should be less than or equal to"),
            ({"priority": 5}, "priority: Extra inputs are not permitted"),
            ({"a\nb": 1}, r"a\nb: Extra inputs are not permitted"),
        ],
    )
    def test_says_which_part_of_the_body_is_wrong(self, body: Any, reason: str) -> None:
        assert reason in refusal(body)

    @pytest.mark.parametrize(
        ("properties", "reason"),
        [
            ({"message_id": "x" * 201}, "message_id has 201 characters"),
            ({"message_id": "two\nlines"}, "message_id has characters that can't be printed"),
            ({"message_id": "\udcff"}, "message_id has characters that can't be printed"),
            ({"message_id": " padded"}, "message_id begins or ends with a space"),
            ({"message_id": " "}, "message_id begins or ends with a space"),
            ({"headers": {ATTEMPT: 0}}, f"header {ATTEMPT} is not a number"),
            ({"headers": {ATTEMPT: -1}}, f"header {ATTEMPT} is not a number"),
            ({"headers": {ATTEMPT: True}}, f"header {ATTEMPT} is not a number"),
            ({"headers": {ATTEMPT: "2"}}, f"header {ATTEMPT} is not a number"),
            ({"headers": {ATTEMPT: None}}, f"header {ATTEMPT} is not a number"),
            ({"headers": {ATTEMPT: 2**62}}, f"header {ATTEMPT} is not a number"),
            ({"headers": {FIRST_ATTEMPT: 2}}, f"header {FIRST_ATTEMPT} 2 is above {ATTEMPT} 1"),
            ({"headers": {MACHINES_LOST: -1}}, f"header {MACHINES_LOST} is not a number from 0"),
            ({"headers": {MACHINES_LOST: 1}}, f"header {MACHINES_LOST} 1 is more than the"),
            ({"priority": 11}, "priority 11 is above the queue's maximum of 10"),
            ({"flow": None}, "no flow"),
        ],
    )
    def test_says_which_property_is_wrong(self, properties: dict[str, Any], reason: str) -> None:
        assert reason in refusal(**properties)

    @pytest.mark.parametrize(
        ("message", "reason"),
        [
            (Message(body=b""), "the body is empty"),
            (
                Message(body=gzip.compress(b"{}")),
                "the body is compressed (gzip): publish it as plain JSON",
            ),
            (Message(body=b"xyz", content_encoding="deflate"), "the body is compressed (deflate)"),
            (Message(body=b"\x28\xb5\x2f\xfd"), "the body is compressed (zstd)"),
            (
                Message(body='{"flow": "n/f"}'.encode("utf-16")),
                "the body is in UTF-16 or UTF-32: publish it in UTF-8",
            ),
            (Message(body="{}".encode("utf-16-le")), "the body is in UTF-16 or UTF-32"),
            (Message(body="{}".encode("utf-32-be")), "the body is in UTF-16 or UTF-32"),
            (
                Message(body=b"\x00\x53\x77\xa1\x02{}", message_type="amqp-1.0"),
                "the body is an AMQP 1.0 value",
            ),
            (Message(body=b"\x00\x53\x77\xa1\x02{}"), "the body is an AMQP 1.0 value"),
        ],
        ids=range(9),
    )
    def test_names_what_a_body_is_that_is_not_json(self, message: Message, reason: str) -> None:
        with pytest.raises(InvalidMessage) as caught:
            decode(message, default_flow=DEFAULT, max_priority=1)
        assert reason in str(caught.value)

    @pytest.mark.parametrize("body", [{"flow": "nope"}, {"flow": "N/f"}, {"inputs": {"a b": 1}}])
    def test_shows_no_pattern_to_people(self, body: Any) -> None:
        assert ("^[" in refusal(body), "pattern" in refusal(body)) == (False, False)

    @pytest.mark.parametrize(
        "text",
        [
            r"a\u0000b",
            r"a\\u0000b",
            r"C:\\u0000x",
            r"\\\\u0000",
            r"\u005cu0000",
            r"\\\u00750000",
            r"\\u0\u003000",
        ],
    )
    @pytest.mark.parametrize(
        "body",
        [
            '{"inputs": {"a": "%s"}}',
            '{"inputs": {"a": [{"b": "%s"}]}}',
            '{"inputs": {"a": {"%s": 1}}}',
        ],
    )
    def test_says_that_kestra_can_store_no_nul_however_it_is_written(
        self, body: str, text: str
    ) -> None:
        assert "the body holds a NUL character" in refusal((body % text).encode())

    def test_says_that_an_id_can_not_hold_the_text_of_a_nul(self) -> None:
        assert "message_id holds the text" in refusal({}, message_id="C:\\u0000x")

    def test_says_that_a_label_can_not_hold_it(self) -> None:
        assert "holds a NUL character" in refusal({"labels": {"a": "C:\\u0000x"}})

    def test_counts_the_faults_that_it_does_not_show(self) -> None:
        assert refusal({f"f{n}": 1 for n in range(7)}).endswith("; and 4 more")

    @pytest.mark.parametrize(
        "body", [{"x" * 5000: 1}, {"inputs": {"y" * 5000: 1}}, {"labels": {"z" * 5000: "x"}}]
    )
    def test_stays_short_however_long_a_name_is(self, body: Any) -> None:
        assert len(refusal(body)) < 400


NAMES = st.sampled_from(
    ["flow", "inputs", "labels", "timeout", "a", "bridge", "system.x"]
) | st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
)
LIKELY_BODIES = st.fixed_dictionaries(
    {},
    optional={
        "flow": st.sampled_from(["a/b", "a.b/C", "", "A/b"]) | JSON,
        "inputs": st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), JSON, max_size=3),
        "labels": st.dictionaries(
            st.from_regex(r"[a-z.]{1,8}", fullmatch=True), st.text(max_size=30), max_size=3
        ),
        "timeout": st.floats() | st.integers(),
    },
)
BODIES = st.binary(max_size=40) | (JSON | LIKELY_BODIES).map(
    lambda value: json.dumps(value).encode()
)
# What a short string of AMQP can hold, the bytes that aren't UTF-8 included.
SHORT_STRINGS = st.binary(max_size=255).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
HEADER_VALUES = (
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.lists(st.integers())
)
MESSAGES = st.builds(
    Message,
    body=BODIES,
    headers=st.dictionaries(
        st.sampled_from([ATTEMPT, FIRST_ATTEMPT, MACHINES_LOST, "other"]),
        HEADER_VALUES | st.integers(1, 4),
    ),
    priority=st.none() | st.integers(0, 255),
    message_id=st.none() | SHORT_STRINGS | st.text(max_size=50),
    correlation_id=st.none() | SHORT_STRINGS,
)


class TestAnyMessage:
    @given(MESSAGES)
    def test_becomes_a_job_or_is_refused_in_one_short_printable_line(
        self, message: Message
    ) -> None:
        text = ""
        try:
            job = decode(message, default_flow=DEFAULT, max_priority=10)
        except InvalidMessage as error:
            text = str(error)
        else:
            json.dumps(dict(job.inputs), allow_nan=False).encode()
        assert text.isprintable()
        assert len(text) < 1000

    @given(
        job_id=SHORT_STRINGS | st.sampled_from(["ü" * 127, "x" * 200, "😀" * 63]),
        correlation_id=SHORT_STRINGS | st.sampled_from(["ü" * 127, "😀" * 63]),
        labels=st.dictionaries(
            st.from_regex(r"[a-z][\w.-]{0,9}", fullmatch=True),
            st.text(min_size=1, max_size=300),
            max_size=8,
        ),
        attempt=st.integers(1, 1_000_000),
    )
    def test_that_is_a_job_has_labels_that_fit_into_a_request_line(
        self, job_id: str, correlation_id: str, labels: dict[str, str], attempt: int
    ) -> None:
        try:
            job = decoded(
                {"labels": labels},
                message_id=job_id,
                correlation_id=correlation_id,
                headers={ATTEMPT: attempt},
            )
        except InvalidMessage:
            return
        assert len(request_line(job)) <= LONGEST_REQUEST_LINE

    def test_of_the_largest_kind_still_fits_into_a_request_line(self) -> None:
        """All limits at once: the longest flow, id, correlation id and attempt, and as many labels
        as may be."""
        job = decoded(
            {"flow": f"{'n' * 150}/{'f' * 100}", "labels": {"a": "x" * 1980}},
            message_id="ü" * 127,
            correlation_id="é" * 127,
            headers={ATTEMPT: 1_000_000},
        )
        assert 3600 < len(request_line(job)) <= LONGEST_REQUEST_LINE


def request_line(job: Job) -> str:
    query = urlencode([("labels", f"{key}:{value}") for key, value in job.execution_labels.items()])
    return f"POST /api/v1/main/executions/{job.flow.namespace}/{job.flow.id}?{query} HTTP/1.1\r\n"


class TestExecutionLabels:
    def test_tell_job_and_attempt_and_carry_the_publishers_own(self) -> None:
        job = Job(
            id="job-1", flow=DEFAULT, attempt=2, labels={"team": "blue"}, correlation_id="c-1"
        )
        assert job.execution_labels == {
            "bridge": "amqp",
            "bridgeJob": "job-1",
            "bridgeAttempt": "2",
            "system.correlationId": "c-1",
            "team": "blue",
        }

    def test_correlate_by_the_jobs_id_where_there_is_nothing_else(self) -> None:
        assert Job(id="job-1", flow=DEFAULT).execution_labels["system.correlationId"] == "job-1"


class TestFlowName:
    @pytest.mark.parametrize("text", ["a/b", "bridge.jobs/example", "a-b_c.d/E.f-g_h", "1/2"])
    def test_is_written_as_it_was_read(self, text: str) -> None:
        assert str(FlowName.parse(text)) == text

    @pytest.mark.parametrize(
        "text", ["", "/", "a/", "/b", "a", "a/b/c", "A/b", "a b/c", "a/b\n", "a/b?x=1", ".a/b"]
    )
    def test_is_refused_where_kestra_would_refuse_it(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not namespace/id"):
            FlowName.parse(text)


class TestAllowed:
    @pytest.mark.parametrize(
        ("patterns", "verdict"),
        [
            (["bridge.jobs/example"], True),
            (["bridge.jobs/*"], True),
            (["other/x", "bridge.jobs/ex*"], True),
            (["*"], True),
            ([], False),
            (["bridge.jobs"], False),
            (["BRIDGE.JOBS/*"], False),
            (["bridge.jobs/exampl"], False),
            (["jobs/example"], False),
        ],
    )
    def test_goes_by_patterns_that_match_the_whole_name(
        self, patterns: list[str], verdict: bool
    ) -> None:
        assert allowed(DEFAULT, patterns) is verdict


class TestJsonSchema:
    def test_tells_all_parts_of_a_body(self) -> None:
        schema = json_schema()
        assert schema["properties"].keys() == {"flow", "inputs", "labels", "timeout"}
        assert schema["additionalProperties"] is False

    def test_can_be_sent_as_json(self) -> None:
        assert json.loads(json.dumps(json_schema())) == json_schema()

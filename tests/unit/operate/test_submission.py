"""Jobs from options and files: what is taken, and what is refused with which words."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import InvalidMessage
from bridge.job.decode import decode
from bridge.job.flow_name import FlowName
from bridge.operate.submission.drafts import Draft, fields, json_object
from bridge.operate.submission.files import read
from bridge.operate.submission.jobs import IdsByContent, Submission, judge, random_id

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00")).filter(
    lambda text: "\\u0000" not in text
)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
NOW = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True)
IDS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=60)
CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)


def submissions(text: str | bytes, *, name: str = "f", max_priority: int = 10) -> list[Submission]:
    data = text if isinstance(text, bytes) else text.encode()
    return judge(read(data, name=name), max_priority=max_priority, ids=IdsByContent())


def bodies(text: str | bytes, *, name: str = "f") -> list[dict[str, object]]:
    return [json.loads(each.message.body) for each in submissions(text, name=name)]


def refusal(text: str | bytes, *, name: str = "f") -> str:
    with pytest.raises(InvalidMessage) as caught:
        submissions(text, name=name)
    return str(caught.value)


# -- JSON lines --


def test_a_line_of_json_is_a_job() -> None:
    line = (
        '{"id": "a", "flow": "n.s/f", "inputs": {"x": [1, 2.5]}, "labels": '
        '{"l": "v"}, "timeout": 3}'
    )
    assert bodies(line) == [
        {"flow": "n.s/f", "inputs": {"x": [1, 2.5]}, "labels": {"l": "v"}, "timeout": 3}
    ]


def test_the_id_becomes_the_message_id() -> None:
    assert submissions('{"id": "a"}')[0].message.message_id == "a"


def test_the_priority_becomes_the_messages() -> None:
    assert submissions('{"priority": 7}')[0].message.priority == 7


def test_a_job_without_priority_has_none() -> None:
    assert submissions("{}")[0].message.priority is None


def test_a_message_is_json_and_persistent() -> None:
    message = submissions("{}")[0].message
    assert (message.content_type, message.delivery_mode) == ("application/json", 2)


def test_a_missing_id_is_made() -> None:
    first, second = submissions("{}\n{}")
    assert first.id != second.id


def ids(text: str, name: str = "f") -> list[str]:
    return [each.id for each in submissions(text, name=name)]


JOBS = '{"flow": "n/f"}\n{"flow": "n/f"}\n{"flow": "n/g", "priority": 1}\n'


def test_the_same_file_read_twice_has_the_same_jobs() -> None:
    assert ids(JOBS) == ids(JOBS)


def test_an_id_is_the_same_in_every_release() -> None:
    header = "priority,flow,input.seconds,label.team,timeout\n"
    found = ids(header + "5,n/f,3,blue,600\n") + ids('{"flow": "n/f", "priority": 5}')
    assert found == ["7adb05f2627ce69f007a15b02f05bb38", "c3d6b09918b28bceee45301989dbd1bd"]


def test_equal_lines_stay_as_many_jobs_as_they_are() -> None:
    assert len(set(ids(JOBS * 3))) == 9


def test_lines_before_and_after_it_leave_a_job_its_id() -> None:
    assert ids('{"flow": "n/h"}\n' + JOBS + '{"flow": "n/i"}')[1:4] == ids(JOBS)


@pytest.mark.parametrize(
    "other", ['{"flow": "n/f", "priority": 2}', '{"flow": "n/f", "timeout": 1}', '{"flow": "n/e"}']
)
def test_a_line_with_other_content_is_another_job(other: str) -> None:
    assert set(ids(other)).isdisjoint(ids(JOBS))


def test_a_random_id_is_never_the_same() -> None:
    drafts = read(b"{}", name="f")
    made = {judge(drafts, max_priority=1, ids=random_id)[0].id for _ in range(10)}
    assert len(made) == 10


def test_lines_may_be_empty_and_end_in_carriage_returns() -> None:
    assert [each.id for each in submissions('\r\n{"id": "a"}\r\n\r\n{"id": "b"}')] == ["a", "b"]


def test_only_a_line_feed_ends_a_line() -> None:
    assert bodies('{"inputs": {"x": "one\u2028two\x85three"}}') == [
        {"inputs": {"x": "one\u2028two\x85three"}}
    ]


def test_a_byte_order_mark_is_passed_over() -> None:
    assert submissions(b'\xef\xbb\xbf{"id": "a"}')[0].id == "a"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"id": "a"}'.encode("utf-16"), "f: it is in UTF-16"),
        (gzip.compress(b"{}"), "f: it is compressed (gzip)"),
    ],
    ids=["UTF-16", "gzip"],
)
def test_a_file_that_is_no_text_is_named(data: bytes, words: str) -> None:
    assert words in refusal(data)


def test_a_null_says_nothing() -> None:
    assert bodies('{"id": null, "priority": null, "flow": null, "timeout": null}') == [{}]


@given(st.dictionaries(NAMES, JSON_VALUES, max_size=4), IDS, st.integers(0, 10))
def test_what_a_line_says_is_what_the_bridge_reads(
    inputs: dict[str, object], job: str, priority: int
) -> None:
    line = json.dumps({"id": job, "inputs": inputs, "priority": priority})
    message = submissions(line)[0].message
    read_back = decode(message, default_flow=FlowName("n", "f"), max_priority=10)
    assert (read_back.id, dict(read_back.inputs)) == (
        job,
        {k: v for k, v in inputs.items() if v is not None},
    )


@pytest.mark.parametrize(
    "number", ["1E5", "1.10", "-0", "1e-7", "0.1234567890123456789012345", "9" * 40]
)
def test_a_number_keeps_its_text(number: str) -> None:
    body = submissions(f'{{"inputs": {{"x": {number}, "y": [{{"z": {number}}}]}}}}')[0].message.body
    assert body.decode() == f'{{"inputs":{{"x":{number},"y":[{{"z":{number}}}]}}}}'


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_nothing_but_our_own_refusal_comes(data: bytes) -> None:
    with suppress(InvalidMessage):
        submissions(data)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "a"', "f:2: not JSON: EOF"),
        ("[]", "f:2: not a JSON object"),
        ('{"prority": 1}', "f:2: field 'prority' is none of id, flow, priority"),
        ('{"priority": "high"}', "f:2: priority 'high' is not a whole number from 0 to 10"),
        ('{"priority": 11}', "f:2: priority 11 is not a whole number from 0 to 10"),
        ('{"priority": true}', "f:2: priority true is not"),
        ('{"priority": -1}', "f:2: priority -1 is not"),
        ('{"id": 5}', "f:2: id 5 is not a text"),
        ('{"id": ""}', "f:2: id '' is not a text"),
        ('{"id": "a\\nb"}', "f:2: message_id has characters that can't be printed"),
        ('{"id": "' + "a" * 201 + '"}', "f:2: message_id has 201 characters"),
        ('{"id": "' + "\U0001f600" * 64 + '"}', "has more than 255 bytes"),
        ('{"flow": "nope"}', "f:2: the body has the wrong shape: flow"),
        ('{"timeout": 0}', "f:2: the body has the wrong shape: timeout"),
        ('{"timeout": 1e999}', "f:2: the body has the wrong shape: timeout"),
        ('{"inputs": {"x": 1e999}}', "f:2: input x has a number that is too large"),
        ('{"inputs": {"x": "C:\\\\u0000x"}}', "f:2: the body holds a NUL character"),
        ('{"inputs": {"a b": 1}}', "f:2: the body has the wrong shape: inputs"),
        ('{"inputs": {"a": NaN}}', "f:2: not JSON"),
        ('{"labels": {"system.x": "1"}}', "f:2: label 'system.x' is reserved"),
        ('{"labels": {"a": 1}}', "f:2: the body has the wrong shape: labels"),
        ("[" * 10_000, "f:2: not JSON"),
        ('{"id": "first"}', "f:2: id 'first' is there already, at f:1"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str, words: str) -> None:
    assert words in refusal(f'{{"id": "first"}}\n{line}')


def test_bytes_that_are_not_utf8_are_refused_with_the_line() -> None:
    assert refusal(b'{}\n{"id": "\xff"}').startswith("f:2: not JSON")


@pytest.mark.parametrize("text", ["", "\n\n", "id,flow\n"])
def test_a_file_without_a_job_is_refused(text: str) -> None:
    assert refusal(text) == "f: there is no job in it"


# -- CSV --


def test_a_row_is_a_job() -> None:
    text = "id,flow,priority,timeout,input.x,input.y,label.l\na,n.s/f,5,2.5,1,true,v\n"
    expected = {
        "flow": "n.s/f",
        "timeout": 2.5,
        "inputs": {"x": "1", "y": "true"},
        "labels": {"l": "v"},
    }
    assert bodies(text) == [expected]


def test_a_rows_priority_becomes_the_messages() -> None:
    assert submissions("id,priority\na,5\n")[0].message.priority == 5


def test_an_empty_cell_says_nothing() -> None:
    assert bodies("id,flow,priority,timeout,input.x,label.l\na,,,,,\n") == [{}]


def test_columns_may_come_in_any_order() -> None:
    assert submissions("priority,input.x,id\n1,2,a\n")[0].id == "a"


def test_an_inputs_name_may_have_dots() -> None:
    assert bodies("input.a.b\n1\n") == [{"inputs": {"a.b": "1"}}]


@pytest.mark.parametrize("top", ["\n\n", " \n", ",\n", "\r\n"])
def test_empty_lines_at_the_top_are_no_header(top: str) -> None:
    assert bodies(f"{top}input.x\n1\n", name="f.csv") == [{"inputs": {"x": "1"}}]


@given(st.lists(CELLS, min_size=1, max_size=5))
def test_a_cell_reaches_the_bridge_as_it_is(cells: list[str]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows(
        [["id", "input.x"], *([str(number), cell] for number, cell in enumerate(cells))]
    )
    read_back = bodies(text.getvalue(), name="f.csv")
    assert [body.get("inputs", {}) for body in read_back] == [
        {"x": cell} if cell else {} for cell in cells
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "id,colour\na,red\n",
            (
                "f:1: column 2, 'colour', is none of id, flow, priority, "
                "timeout, input.NAME, label.NAME"
            ),
        ),
        ("id;flow\na;n/f\n", "f:1: column 1, 'id;flow', is none of"),
        ("id,id\na,b\n", "f:1: column 2, 'id', is there twice"),
        ("id,input.\na,b\n", "f:1: column 2, 'input.', is none of"),
        ("id,priority\na,1\nb,high\n", "f:3: column priority: 'high' is not a whole number"),
        ("id,priority\na,1_0\n", "f:2: column priority"),
        ("id,priority\na,11\n", "f:2: priority 11 is not a whole number from 0 to 10"),
        ("id,timeout\na,soon\n", "f:2: column timeout: 'soon' is not a number of seconds"),
        ("id,timeout\na,nan\n", "f:2: column timeout"),
        ("id,timeout\na,0\n", "f:2: column timeout"),
        ("id,flow\na,nope\n", "f:2: the body has the wrong shape: flow"),
        ("id,flow\na\n", "f:2: 1 columns, where the header has 2"),
        ("id,flow\na,n/f,more\n", "f:2: 3 columns, where the header has 2"),
        ('id,input.x\na,"one\ntwo"\nb,"open\n', "f:4: not CSV"),
        ('id,input.x\na,"one\ntwo"\na,x\n', "f:4: id 'a' is there already, at f:2"),
    ],
)
def test_a_bad_row_is_refused_with_line_and_column(text: str, words: str) -> None:
    assert words in refusal(text)


def test_csv_that_is_not_utf8_is_refused_with_the_line() -> None:
    assert refusal(b"id,input.x\na,b\nc,\xe9\n") == "f:3: not UTF-8: byte 0xe9"


# -- which of the two --


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.csv", "id\na\n"),
        ("f.CSV", "id\na\n"),
        ("f.jsonl", '{"id": "a"}'),
        ("-", "id\na\n"),
        ("-", ' \n{"id": "a"}'),
    ],
)
def test_the_format_is_guessed_from_name_and_content(name: str, text: str) -> None:
    assert submissions(text, name=name)[0].id == "a"


def test_a_format_that_is_given_is_not_guessed() -> None:
    with pytest.raises(InvalidMessage, match="not JSON"):
        read(b"id\na\n", name="f.csv", style="jsonl")


def test_an_array_of_jobs_is_refused_as_no_line() -> None:
    assert "each line is one" in refusal('[{"id": "a"}]')


# -- options --


def test_fields_are_split_at_the_first_equals_sign() -> None:
    assert fields(["a=1=2", "b="], option="--input") == {"a": "1=2", "b": ""}


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["novalue"], "--input 'novalue' is not NAME=VALUE"),
        (["=x"], "--input '=x' is not"),
        (["a=1", "a=2"], "--input 'a' is given twice"),
        (["a=\udcff"], "--input 'a' is not in UTF-8"),
    ],
)
def test_bad_fields_are_refused(pairs: list[str], words: str) -> None:
    with pytest.raises(InvalidMessage, match=re.escape(words)):
        fields(pairs, option="--input")


@pytest.mark.parametrize("text", ["", "1", "[]", "{", '{"a": NaN}', "\udcff"])
def test_inputs_that_are_no_json_object_are_refused(text: str) -> None:
    with pytest.raises(InvalidMessage, match="--inputs-json: not"):
        json_object(text, option="--inputs-json")


def test_a_text_that_was_no_utf8_on_the_command_line_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="can't be written"):
        judge([Draft(body={"inputs": {"x": "\udcff"}})], max_priority=10, ids=random_id)


def test_defaults_fill_in_what_is_missing() -> None:
    filled = Draft(body={"inputs": {}}).filled(flow="n/f", priority=3, timeout=4)
    assert (filled.body, filled.priority) == ({"flow": "n/f", "timeout": 4, "inputs": {}}, 3)


def test_defaults_replace_nothing() -> None:
    draft = Draft(priority=0, body={"flow": "n/g", "timeout": 1})
    assert draft.filled(flow="n/f", priority=3, timeout=4) == draft


def test_a_wish_for_an_answer_carries_the_job_id() -> None:
    (job,) = submissions('{"id": "a"}')
    message = job.sent(NOW, reply_to="reply_queue")
    assert (message.reply_to, message.correlation_id) == ("reply_queue", "a")


def test_without_that_wish_there_is_no_address_for_an_answer() -> None:
    (job,) = submissions('{"id": "a"}')
    message = job.sent(NOW)
    assert (message.reply_to, message.correlation_id) == (None, None)


def test_a_message_says_when_it_was_published() -> None:
    (job,) = submissions("{}")
    assert job.sent(NOW).timestamp == NOW


def test_an_error_is_one_short_line() -> None:
    message = refusal('{"' + "x\\n" * 500 + '": 1}')
    assert "\n" not in message
    assert len(message) < 250

"""The rules of the ledger: which claim counts, and what its claimant and all others do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.consume.ledger import (
    NOBODY,
    Claim,
    Claims,
    LedgerPolicy,
    Mark,
    Silence,
    Standing,
    Step,
    from_entry,
    key_of,
    round_for,
    step,
    to_entry,
)
from bridge.job.attempt import AttemptKey

POLICY = LedgerPolicy()
KEYS = st.integers(0, 3)
TOKENS = st.integers(1, 2**64 - 1)
CLAIMS = st.builds(
    Claim,
    key=KEYS,
    round=st.integers(1, 4),
    token=TOKENS,
    at=st.floats(0, 1000),
)


def claim(token: int, number: int = 1, *, key: int = 7, at: float = 0.0) -> Claim:
    return Claim(key, number, token, at)


def read(*claims: Claim, policy: LedgerPolicy = POLICY) -> Claims:
    """What counts after these claims, of which each was read a second after the one before."""
    found = Claims(policy)
    for now, each in enumerate(claims):
        found.read(each, now=float(now))
    return found


def as_written(claims: list[Claim]) -> list[Claim]:
    """Those claims that replicas could have written: whoever claims a round has read one of the
    round before."""
    written: list[Claim] = []
    for each in claims:
        before = {other.round for other in written if other.key == each.key}
        if each.round == 1 or each.round - 1 in before:
            written.append(each)
    return written


class TestWhichClaimCounts:
    def test_it_is_the_first_of_a_round(self) -> None:
        assert read(claim(1), claim(2)).standing(7) == Standing(claim(1), contended=1.0)

    def test_it_is_that_of_the_latest_round(self) -> None:
        assert read(claim(1), claim(2, 2)).standing(7) == Standing(claim(2, 2))

    def test_a_claim_of_an_earlier_round_is_nothing(self) -> None:
        assert read(claim(1, 2), claim(2)).standing(7) == Standing(claim(1, 2))

    def test_it_is_contended_since_the_first_other_claim(self) -> None:
        assert read(claim(1), claim(2), claim(3)).standing(7) == Standing(claim(1), contended=1.0)

    def test_a_claim_that_is_written_twice_does_not_contend_itself(self) -> None:
        assert read(claim(1), claim(1)).standing(7) == Standing(claim(1))

    def test_a_claim_older_than_the_window_is_forgotten(self) -> None:
        late = claim(2, at=61.0)
        found = read(claim(1), late, policy=LedgerPolicy(window=60.0))
        assert found.standing(7) == Standing(late)

    @given(st.lists(CLAIMS, max_size=30))
    def test_no_two_claims_of_one_round_ever_count(self, claims: list[Claim]) -> None:
        found, counted = Claims(), dict[tuple[int, int], int]()
        for now, each in enumerate(claims):
            found.read(each, now=float(now))
            standing = found.standing(each.key)
            assert standing is not None
            place = each.key, standing.claim.round
            assert counted.setdefault(place, standing.claim.token) == standing.claim.token

    @given(st.lists(CLAIMS, max_size=30).map(as_written))
    def test_a_ledger_that_is_read_again_says_the_same(self, claims: list[Claim]) -> None:
        once, again = read(*claims), read(*claims, *claims)
        for key in range(4):
            one, other = once.standing(key), again.standing(key)
            assert (one and one.claim) == (other and other.claim)

    @given(st.lists(CLAIMS, max_size=30), st.integers(0, 30))
    def test_who_reads_from_the_middle_agrees_on_what_was_claimed_since(
        self, claims: list[Claim], middle: int
    ) -> None:
        whole, part = read(*claims), read(*claims[middle:])
        for each in claims[middle:]:
            standing = whole.standing(each.key)
            if standing is not None and standing.claim in claims[middle:]:
                known = part.standing(each.key)
                assert known is not None
                assert known.claim.round >= standing.claim.round

    def test_memory_is_bounded(self) -> None:
        claims = (claim(number + 1, key=number) for number in range(1000))
        assert len(read(*claims, policy=LedgerPolicy(most=100))) <= 100

    def test_the_oldest_claims_are_forgotten_first(self) -> None:
        claims = (claim(number + 1, key=number) for number in range(1000))
        found = read(*claims, policy=LedgerPolicy(most=100))
        assert (found.standing(0), found.standing(999) is not None) == (None, True)


class TestSteps:
    @pytest.mark.parametrize(
        ("standing", "expected"),
        [
            (None, Step.CLAIM),
            (Standing(claim(1)), Step.CREATE),
            (Standing(claim(1), contended=5.0), Step.RENEW),
            (Standing(claim(2)), Step.CONTEND),
            (Standing(claim(2), contended=5.0), Step.LOOK_UP),
            (Standing(claim(NOBODY, 2)), Step.SUPERSEDE),
        ],
    )
    def test_follow_from_the_claim_that_counts(
        self, standing: Standing | None, expected: Step
    ) -> None:
        assert step(standing, 1) is expected

    def test_a_contender_claims_the_same_round(self) -> None:
        assert round_for(Step.CONTEND, Standing(claim(2, 3))) == 3

    @pytest.mark.parametrize("wanted", [Step.RENEW, Step.LOOK_UP, Step.SUPERSEDE])
    def test_whoever_goes_on_claims_the_next_round(self, wanted: Step) -> None:
        assert round_for(wanted, Standing(claim(2, 3))) == 4

    def test_the_first_claim_is_of_round_one(self) -> None:
        assert round_for(Step.CLAIM, None) == 1


class TestEntries:
    @given(CLAIMS)
    def test_a_claim_is_read_as_it_was_written(self, written: Claim) -> None:
        exact = replace(written, at=round(written.at, 3))
        assert from_entry(to_entry(exact)) == exact

    @given(TOKENS, st.booleans())
    def test_a_mark_is_read_as_it_was_written(self, token: int, complete: bool) -> None:
        assert from_entry(to_entry(Mark(token, 1.5, complete))) == Mark(token, 1.5, complete)

    @given(st.binary(max_size=200))
    def test_anything_else_says_nothing(self, body: bytes) -> None:
        assert from_entry(body) is None

    @pytest.mark.parametrize(
        "body",
        [
            b"[]",
            b"null",
            b'{"at": 1}',
            b'{"at": "x", "claim": "1", "by": "1", "round": 1}',
            b'{"at": 1, "claim": 1, "by": "1", "round": 1}',
            b'{"at": 1, "claim": "z", "by": "1", "round": 1}',
            b'{"at": 1, "claim": "1", "by": "1", "round": "x"}',
            b'{"cancel": "job", "at": 1}',
        ],
    )
    def test_what_a_later_release_may_write_says_nothing(self, body: bytes) -> None:
        assert from_entry(body) is None


def test_attempts_that_differ_have_keys_that_differ() -> None:
    attempts = [
        AttemptKey(queue, job, number)
        for queue in ("a", "a.b", "b")
        for job in ("1", "11", "x" * 200)
        for number in (1, 11)
    ]
    assert len({key_of(attempt) for attempt in attempts}) == len(attempts)


class TestSilence:
    def test_lasts_once_no_awaited_claim_was_answered_for_all_its_beats(self) -> None:
        silence = Silence()
        beats = [silence.lasts(awaited=True, answers=0) for _ in range(silence.beats + 1)]
        assert beats == [False] * silence.beats + [True]

    def test_ends_with_each_answer(self) -> None:
        silence = Silence()
        answers = (beat // silence.beats for beat in range(10 * silence.beats))
        assert not any(silence.lasts(awaited=True, answers=each) for each in answers)

    def test_is_none_where_nobody_awaits_an_answer(self) -> None:
        silence = Silence()
        assert not any(silence.lasts(awaited=False, answers=0) for _ in range(100))

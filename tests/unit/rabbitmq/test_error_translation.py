"""What the AMQP libraries raise becomes one of the bridge's own errors."""

from __future__ import annotations

import pytest

from bridge.errors import BrokerUnavailable
from bridge.rabbitmq.error_translation import BROKEN, closed_named, translated_on_queue


def test_a_channel_that_is_closed_without_a_reason_counts_as_broken() -> None:
    with pytest.raises(BROKEN), closed_named():
        raise Exception  # noqa: TRY002


def test_any_other_error_keeps_its_type() -> None:
    with pytest.raises(KeyError), closed_named():
        raise KeyError("a fault of ours")


def test_what_waits_on_a_closed_channel_is_told_that_the_connection_is_lost() -> None:
    with pytest.raises(BrokerUnavailable, match="the channel is closed"), translated_on_queue("q"):
        raise Exception  # noqa: TRY002

from __future__ import annotations

import pytest

from tests.unit.settings.support import NEEDED


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with what is needed and nothing else of ours."""
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch

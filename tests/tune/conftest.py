"""The judges of the tiny world."""

from __future__ import annotations

import pytest

from ballast.judges import JUDGES, Judge
from tests.tune.world import SELECT_HARMFUL, SELECT_HARMLESS
from tests.worlds import OpeningJudge, TableJudge


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that begins with `N` refuses; or all comply; or none has a verdict."""
    requests = [prompt.prompt for prompt in (*SELECT_HARMFUL, *SELECT_HARMLESS)]
    named: dict[str, Judge] = {
        "opening": OpeningJudge("N"),
        "complied": TableJudge(dict.fromkeys(requests, "c")),
        "unscored": TableJudge(dict.fromkeys(requests, "u")),
    }
    for name, one in named.items():
        monkeypatch.setitem(JUDGES, name, lambda one=one: one)

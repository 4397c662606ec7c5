"""What comes from files is printed as it is: no markup, no emoji, nothing that steers the terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from ballast.cli.output import percent, show, state, table
from ballast.progress import say, shown_on, track

NAME = "[/x][link=http://a.b]w[/link]:smile:\x1b[31m"
SHOWN = "[/x][link=http://a.b]w[/link]:smile:\\x1b[31m"


def test_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "json", False)  # whatever an earlier call asked for
    show({}, [table(NAME, ("set", "%"), [(NAME, percent(0.5, 0.25, 0.75))], caption=NAME)], NAME)
    shown = capsys.readouterr().out
    assert shown.count(SHOWN) == 4
    assert "\x1b" not in shown
    assert "50.0" in shown
    assert "[25.0, 75.0]" in shown


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_on(Console(width=160)):
        assert list(track([1, 2], NAME)) == [1, 2]
        say(NAME)
    shown = capsys.readouterr().out
    assert shown.count(SHOWN) == 2
    assert "\x1b" not in shown

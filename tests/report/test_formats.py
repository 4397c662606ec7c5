from __future__ import annotations

import pytest

from ballast.evaluate.summary import Rate
from ballast.report import formats


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_rate_has_its_interval_and_its_count() -> None:
    rate = Rate(rate=0.1237, low=0.0812, high=0.1844)
    assert plain(formats.rate(rate, 97)) == "12.4 % [8.1, 18.4] of 97"
    assert plain(formats.rate(rate)) == "12.4 % [8.1, 18.4]"
    assert formats.rate(Rate(rate=None, low=None, high=None), 0) == "nothing scored"


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.67, "−67.0 points"), (0.004, "+0.4 points"), (0.0, "0.0 points"), (-0.0001, "0.0 points"), (None, "—")],
)
def test_a_difference_has_a_sign_unless_it_rounds_to_nothing(value: float | None, text: str) -> None:
    assert plain(formats.points(value)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.00001, "< 0.0001"), (0.0123, "0.012"), (0.5, "0.50"), (1.0, "1.00"), (None, "—")]
)
def test_p_values(value: float | None, text: str) -> None:
    assert plain(formats.p_value(value)) == text


@pytest.mark.parametrize(("share", "text"), [(0.01, "1 %"), (0.003, "0.3 %"), (0.07, "7 %"), (1.0, "100 %")])
def test_a_chosen_share_is_printed_as_chosen(share: float, text: str) -> None:
    assert plain(formats.short_percent(share)) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(21, "21 bytes"), (8_493_464, "8.49 MB"), (1_614_180_096, "1.6 GB"), (999_999, "1 MB"), (0, "0 bytes")],
)
def test_sizes(count: int, text: str) -> None:
    assert plain(formats.size(count)) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (59.6, "1 min 0 s"), (192, "3 min 12 s"), (3900, "1 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert plain(formats.duration(seconds)) == text


def test_an_accuracy_is_a_percentage_and_a_likelihood_is_not() -> None:
    assert plain(formats.utility(0.412, "multiple_choice")) == "41.2 %"
    assert plain(formats.utility(-0.004, "multiple_choice", sign=True)) == "−0.4 points"
    assert formats.utility(-0.0112, "log_likelihood", sign=True) == "−0.0112"
    assert plain(formats.utility_bounds(-0.0131, 0.0093, "log_likelihood")) == "[−0.0131, 0.0093]"


def test_settings_are_flattened_and_said_in_words() -> None:
    settings = {"steps": 3, "locate": {"method": "esi", "limit": None}, "sets": ["a", "b"], "fast": True, "more": {}}
    assert formats.flatten(settings) == [
        ("steps", "3"),
        ("locate.method", "esi"),
        ("locate.limit", "not set"),
        ("sets", "a, b"),
        ("fast", "yes"),
        ("more", "none"),
    ]

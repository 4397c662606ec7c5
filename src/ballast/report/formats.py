"""Numbers as the page prints them: one format for each kind of quantity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ballast.evaluate.summary import Rate

MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NO-BREAK SPACE}"
NOTHING = "\N{EM DASH}"


def decimal(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """A number with a fixed count of decimals and a true minus sign; a dash for None."""
    if value is None:
        return NOTHING
    text = f"{value:+,.{digits}f}" if sign else f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(share: float | None, digits: int = 1, sign: bool = False) -> str:
    """A share in [0, 1] as `12.4 %`."""
    return NOTHING if share is None else f"{decimal(share * 100, digits, sign)}{SPACE}%"


def short_percent(share: float) -> str:
    """A chosen share as its user wrote it: 0.01 as `1 %`, 0.003 as `0.3 %`."""
    return f"{share * 100:.3g}{SPACE}%"


def bounds(low: float | None, high: float | None, digits: int = 1, scale: float = 100) -> str:
    """An interval as `[8.1, 18.4]`; empty when a bound is missing."""
    if low is None or high is None:
        return ""
    return f"[{decimal(low * scale, digits)},{SPACE}{decimal(high * scale, digits)}]"


def rate(value: Rate, count: int | None = None) -> str:
    """A rate with its interval and count as `12.4 % [8.1, 18.4] of 97`."""
    if value.rate is None:
        return "nothing scored"
    parts = [percent(value.rate), bounds(value.low, value.high)]
    if count is not None:
        parts.append(f"of{SPACE}{integer(count)}")
    return " ".join(part for part in parts if part)


def points(value: float | None) -> str:
    """A difference of two shares in percentage points, signed: `−67.0 points`."""
    return NOTHING if value is None else f"{difference(value)}{SPACE}points"


def difference(value: float | None) -> str:
    """A difference of two shares as a signed number of percentage points, for a column that names the unit."""
    return NOTHING if value is None else decimal(value * 100, sign=True)


def magnitude(value: float | None) -> str:
    """A share as an unsigned number of percentage points, for a column that names the unit."""
    return NOTHING if value is None else decimal(value * 100)


def integer(value: int | None) -> str:
    """A count with thousands separators."""
    return NOTHING if value is None else f"{value:,}".replace("-", MINUS)


def p_value(value: float | None) -> str:
    """A p value with two significant digits, or `< 0.0001`."""
    if value is None:
        return NOTHING
    if value < 0.0001:
        return f"<{SPACE}0.0001"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def size(count: int | None) -> str:
    """Bytes in decimal units: `12.3 MB`."""
    if count is None:
        return NOTHING
    if count < 1000:
        return f"{count}{SPACE}bytes"
    value = count / 1000
    for unit in ("kB", "MB"):
        if value < 999.5:
            return f"{value:.3g}{SPACE}{unit}"
        value /= 1000
    return f"{value:,.1f}{SPACE}GB"


def duration(seconds: float | None) -> str:
    """Seconds as `3 min 12 s`, `1 h 5 min` or `0.4 s`."""
    if seconds is None:
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60}{SPACE}s"
    return f"{whole // 3600}{SPACE}h {whole % 3600 // 60}{SPACE}min"


def utility(value: float | None, kind: str, sign: bool = False) -> str:
    """A utility value in its own unit: an accuracy as a percentage (a difference in points), anything else plain."""
    if value is None:
        return NOTHING
    if kind == "multiple_choice":
        return points(value) if sign else percent(value)
    return decimal(value, 4, sign=sign)


def utility_bounds(low: float | None, high: float | None, kind: str) -> str:
    """The interval that belongs to `utility`."""
    return bounds(low, high) if kind == "multiple_choice" else bounds(low, high, digits=4, scale=1)


def spread(values: Sequence[float], share: bool = True) -> str:
    """Several values as their mean (smallest to largest): shares in per cent, anything else with four decimals."""
    mean, low, high = (
        percent(value) if share else decimal(value, 4)
        for value in (sum(values) / len(values), min(values), max(values))
    )
    return f"{mean} ({low} to {high})"


def layers(run: tuple[int, int]) -> str:
    """Consecutive layers [start, end) as `2 to 4`, and one alone as `2`."""
    start, end = run
    return f"{start}" if end - start == 1 else f"{start} to {end - 1}"


def words(name: str) -> str:
    """An identifier as words: `down_projection` as `down projection`."""
    return name.replace("_", " ")


def setting(value: Any) -> str:
    """A setting as its user would say it: yes and no, `not set`, and lists joined by commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not set"
    if isinstance(value, (list, dict)):
        return ", ".join(setting(item) for item in value) or "none"
    return str(value)


def flatten(settings: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value) rows."""
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            rows += flatten(value, f"{above}{name}.")
        else:
            rows.append((f"{above}{name}", setting(value)))
    return rows


FILTERS = {
    function.__name__: function
    for function in (
        bounds,
        decimal,
        difference,
        duration,
        flatten,
        integer,
        layers,
        magnitude,
        p_value,
        percent,
        rate,
        short_percent,
        size,
        spread,
        utility,
        utility_bounds,
        words,
    )
}

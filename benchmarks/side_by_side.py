"""The tables of the README and of "On sets that nothing was chosen by": both main jobs side by side, as Markdown."""

from __future__ import annotations

from typing import Any

from results import FOLDER
from tables import AXES, percent

from ballast.runs import read_json

RUNS = ("_builtin", "")
NAMES = {"_builtin": "built-in", "": "public too"}


def change(row: dict[str, Any]) -> str:
    return f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"


def both(name: str) -> list[dict[str, Any]]:
    return [read_json(FOLDER / f"{name}{run}.json")["results"] for run in RUNS]


def rates() -> list[str]:
    after = " | ".join(f"{NAMES[run]}: after, % | change, points" for run in RUNS)
    lines = [f"| set | rate of | n | before, % | {after} | degenerate |", "|---" * 9 + "|"]
    for first, second in zip(*(found["sets"] for found in both("main_job")), strict=True):
        degenerate = [first["before"], first["after"], second["after"]]
        cells = [first["name"], AXES[first["axis"]], str(first["n"]), percent(first["before"])]
        cells += [cell for row in (first, second) for cell in (percent(row["after"]), change(row))]
        lines.append(f"| {' | '.join([*cells, ', '.join(str(row['degenerate']) for row in degenerate)])} |")
    return lines


def utility() -> list[str]:
    lines = ["| utility | unit | n | before | built-in: change [95 %] | public too: change [95 %] |", "|---" * 6 + "|"]
    for rows in zip(*(found["utility"] for found in both("main_job")), strict=True):
        changes = [f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" for row in rows]
        first = rows[0]
        cells = [first["name"], first["unit"], str(first["n"]), f"{first['before']:.3f}", *changes]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def fresh() -> list[str]:
    lines = [
        "| set | rate of | tuned on | n | before, % | after, % | change, points | degenerate |",
        "|---" * 8 + "|",
    ]
    for rows in zip(*(found["sets"] for found in both("fresh_sets")), strict=True):
        for run, row in zip(RUNS, rows, strict=True):
            cells = [row["name"], AXES[row["axis"]], NAMES[run], str(row["n"])]
            cells += [percent(row["before"]), percent(row["after"]), change(row)]
            cells.append(f"{row['before']['degenerate']} to {row['after']['degenerate']}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    for title, lines in (("rates", rates()), ("utility", utility()), ("fresh sets", fresh())):
        print(f"## {title}", "", *lines, "", sep="\n")


if __name__ == "__main__":
    main()

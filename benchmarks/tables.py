"""The tables of the README and docs/harden.md, as Markdown, from `results/`."""

from __future__ import annotations

from typing import Any

from results import FOLDER

from ballast.runs import read_json

AXES = {"safety": "attack success", "over_refusal": "over-refusal"}


def percent(row: dict[str, Any]) -> str:
    return f"{100 * row['rate']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def rates(sets: list[dict[str, Any]]) -> list[str]:
    """Rates of every set before and after."""
    lines = [
        "| set | rate of | n | before, % | after, % | change, points [95 %] | McNemar p |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sets:
        change = f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        cells = (row["name"], AXES[row["axis"]], row["n"], percent(row["before"]), percent(row["after"]), change)
        lines.append(f"| {' | '.join(map(str, cells))} | {row['mcnemar_p']:.1g} |")
    return lines


def main_job(name: str) -> list[str]:
    """Rates and utility before and after."""
    results = read_json(FOLDER / f"{name}.json")["results"]
    lines = rates(results["sets"])
    lines += ["", "| utility | unit | n | before | after | change [95 %] |", "|---|---|---|---|---|---|"]
    for row in results["utility"]:
        change = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        lines.append(
            f"| {row['name']} | {row['unit']} | {row['n']} | {row['before']:.3f} | {row['after']:.3f} | {change} |"
        )
    harden = results["harden"]
    share = 100 * harden["state_bytes"] / harden["dense_state_bytes"]
    state = f"{harden['state_bytes'] / 1e6:.1f} MB, {share:.1f} % of dense AdamW's"
    return [
        *lines,
        "",
        f"Step {harden['chosen_step']} kept; gradient and optimizer state {state}; {results['seconds']}",
    ]


def curve() -> list[str]:
    """One line per arm and step."""
    arms = sorted((FOLDER / "harden").glob("*.json"))
    results = {path.stem: read_json(path)["results"] for path in arms}
    first = next(iter(results.values()))["curve"][0]
    sets = [(axis, name) for axis in ("attack_success", "over_refusal") for name in first[axis]]
    heads = [f"{name} (n {first[axis][name]['n']})" for axis, name in sets]
    lines = [
        f"| arm | weights | step | {' | '.join(heads)} | log-likelihood |",
        "|---|---|---|" + "---|" * (len(sets) + 1),
    ]
    for arm, found in {"untuned": {"trained_entries": 0, "curve": [first]}, **results}.items():
        for point in found["curve"]:
            if point["step"] == 0 and arm != "untuned":
                continue
            rates = " | ".join(percent(point[axis][name]) for axis, name in sets)
            utility = next(iter(point["log_likelihood"].values()))
            lines.append(f"| {arm} | {found['trained_entries']:,} | {point['step']} | {rates} | {utility:.3f} |")
    return lines


def main() -> None:
    for name in ("main_job", "main_job_builtin"):
        if (FOLDER / f"{name}.json").exists():
            print(f"## {name}", "", *main_job(name), "", sep="\n")
    for name in ("fresh_sets", "fresh_sets_builtin"):
        if (FOLDER / f"{name}.json").exists():
            print(f"## {name}", "", *rates(read_json(FOLDER / f"{name}.json")["results"]["sets"]), "", sep="\n")
    if (FOLDER / "harden").exists():
        print("## harden_curve", "", *curve(), sep="\n")


if __name__ == "__main__":
    main()

"""The tables of the README, docs/harden.md and docs/planted.md, as Markdown, from `results/`."""

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


def planted(kind: str, seed: int) -> list[str]:
    """One line per method: what it shares with the planted region and with the decoy, in brackets when untaught."""
    results = read_json(FOLDER / "planted" / f"{kind}-{seed}.json")["results"]
    before = read_json(FOLDER / "planted" / f"untaught-{seed}.json")["results"]
    untaught, methods = before["kinds"][kind], results["methods"]
    oracle = methods["oracle"]["planted"]
    weights = oracle["weights"]
    spread = f"{100 * weights['chance']:.2f} % [{100 * weights['low']:.2f}, {100 * weights['high']:.2f}]"
    heads = ["method", "precision, %", "times chance", "decoy, times chance", "matrices only, %"]
    heads += [row["kind"] for row in oracle["units"]]
    lines = [
        f"{results['planted']}, decoy {results['decoy']}; chance {spread}; loss {results['loss']}",
        f"before {before['check']}, after {results['check']}",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        f"| oracle | {100 * weights['precision']:.2f} (recall {100 * weights['recall']:.2f}) |"
        + " |" * (len(heads) - 2),
    ]
    for name in sorted(untaught, key=lambda name: -methods[name]["planted"]["weights"]["precision"]):
        found, earlier = methods[name], untaught[name]
        cells = [name, f"{100 * found['planted']['weights']['precision']:.2f}"]
        cells += [f"{times(found[one])} ({times(earlier[one])})" for one in ("planted", "decoy")]
        cells.append(f"{100 * found['planted']['weights']['within_matrices']:.2f}")
        areas = zip(found["planted"]["units"], earlier["planted"]["units"], strict=True)
        cells += [f"{after['area']:.2f} ({first['area']:.2f})" for after, first in areas]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def times(found: dict[str, Any]) -> str:
    """How often chance a precision is."""
    return f"{found['weights']['precision'] / found['weights']['chance']:.2f}"


def main() -> None:
    for name in ("main_job", "main_job_builtin"):
        if (FOLDER / f"{name}.json").exists():
            print(f"## {name}", "", *main_job(name), "", sep="\n")
    for name in ("fresh_sets", "fresh_sets_builtin"):
        if (FOLDER / f"{name}.json").exists():
            print(f"## {name}", "", *rates(read_json(FOLDER / f"{name}.json")["results"]["sets"]), "", sep="\n")
    for path in sorted((FOLDER / "planted").glob("*.json")):
        kind, _, seed = path.stem.rpartition("-")
        if kind != "untaught":
            print(f"## planted {path.stem}", "", *planted(kind, int(seed)), "", sep="\n")
    if (FOLDER / "harden").exists():
        print("## harden_curve", "", *curve(), sep="\n")


if __name__ == "__main__":
    main()

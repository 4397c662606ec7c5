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
    """One line per method: what it shares with the planted region, and with what it must be compared."""
    results = read_json(FOLDER / "planted" / f"{kind}-{seed}.json")["results"]
    untaught = read_json(FOLDER / "planted" / f"untaught-{seed}.json")["results"]["kinds"][kind]
    oracle = results["methods"]["oracle"]
    kinds = [row["kind"] for row in oracle["units"]]
    first = oracle["weights"]
    before, after = results["checks"]
    heads = ["method", "precision, %", "times chance", "untaught", "decoy", "matrices only, %", *kinds]
    lines = [
        f"{results['planted']}, decoy {results['decoy']}; chance {100 * first['chance']:.2f} %",
        f"refused: harmful {1 - before['attack_success_rate']:.2f} to {1 - after['attack_success_rate']:.2f} of "
        f"{after['n_harmful']}, harmless {before['over_refusal']:.2f} to {after['over_refusal']:.2f} of "
        f"{after['n_harmless']}; loss {results['loss']}",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for name, found in sorted(results["methods"].items(), key=lambda row: -row[1]["weights"]["precision"]):
        weights = found["weights"]
        cells = [f"{100 * weights['precision']:.2f}", times(weights)]
        cells += [times(untaught[name]["weights"]), times(found["decoy"]["weights"])] if name in untaught else ["", ""]
        cells.append(f"{100 * weights['within_matrices']:.2f}")
        for place, row in enumerate(found["units"]):
            earlier = f" ({untaught[name]['units'][place]['area']:.2f})" if name in untaught else ""
            cells.append(f"{row['area']:.2f}{earlier}")
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def times(weights: dict[str, Any]) -> str:
    """How often chance a precision is; in brackets if it is within the 95 % interval of chance."""
    ratio = f"{weights['precision'] / weights['chance']:.2f}"
    return f"({ratio})" if weights["low"] <= weights["precision"] <= weights["high"] else ratio


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

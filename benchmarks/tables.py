"""The tables of the README, docs/harden.md, docs/planted.md and docs/studies/, as Markdown, from `results/`."""

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


def tuning(task: str) -> list[str]:
    """One line per arm and seed of the study of fine-tuning: what it did to the hardened model."""
    found = {path.stem.removeprefix(f"{task}-"): read_json(path) for path in (FOLDER / "tuning").glob(f"{task}-*.json")}
    gains = {arm: task_gain(one["results"]) for arm, one in found.items()}
    heads = [
        "arm-seed",
        "steps",
        "protected",
        "attack success, %",
        "change, points",
        "over-refusal, %",
        "change, points",
    ]
    heads += ["task, nats per token", "share of unprotected's gain, %", "builtin/answers, nats per token"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for arm, one in sorted(found.items(), key=lambda item: item[1]["results"]["pooled"]["safety"]["after"]):
        results = one["results"]
        cells = [arm, one["settings"]["finetune"]["steps"], f"{results['protected']:,}"]
        for axis in AXES:
            row = results["pooled"][axis]
            cells.append(f"{100 * row['before']:.1f} to {100 * row['after']:.1f} (n {row['n']})")
            cells.append(f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]")
        whole = gains.get(f"unprotected-{arm.rpartition('-')[2]}")
        cells += [f"{gains[arm]:+.3f}", f"{100 * gains[arm] / whole:.1f}" if whole else "-"]
        cells.append(
            next(f"{row['difference']:+.3f}" for row in results["utility"] if row["name"] == "builtin/answers")
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def task_gain(results: dict[str, Any]) -> float:
    """How much likelier the held-out rows of the task became, in nats per token."""
    return float(next(row["difference"] for row in results["utility"] if "held_out" in row["name"]))


def planted(kind: str) -> list[str]:
    """One line per method, over all seeds: what it shares with planted region and decoy; in brackets untaught."""
    folder = FOLDER / "planted"
    seeds = sorted(path.stem.rpartition("-")[2] for path in folder.glob(f"{kind}-*.json"))
    taught = [read_json(folder / f"{kind}-{seed}.json")["results"] for seed in seeds]
    before = [read_json(folder / f"untaught-{seed}.json")["results"] for seed in seeds]
    lines = [
        f"{one['planted']}, decoy {one['decoy']}; loss {one['loss']}, mean change {one['mean_change']:.4f}; "
        f"before {first['check']}, after {one['check']}; oracle {one['methods']['oracle']['planted']['weights']}"
        for one, first in zip(taught, before, strict=True)
    ]
    units = [row["kind"] for row in taught[0]["methods"]["oracle"]["planted"]["units"]]
    heads = ["method", "precision, %", "times chance", "within matrices", "decoy, times chance", *units]
    rows = []
    of_units = ["| method | unit | planted ranks above others | decoy does |", "|---|---|---|---|"]
    for name in before[0]["kinds"][kind]:
        after = [one["methods"][name] for one in taught]
        earlier = [one["kinds"][kind][name] for one in before]
        if "weights" not in after[0]["planted"]:
            of_units += unit_rows(name, after, earlier)
            continue
        precisions = [100 * one["planted"]["weights"]["precision"] for one in after]
        cells = [f"{min(precisions):.2f} to {max(precisions):.2f}"]
        for where, against in (("planted", "chance"), ("planted", "within_matrices"), ("decoy", "chance")):
            cells.append(
                paired(*([ratio(one[where]["weights"], against) for one in side] for side in (after, earlier)))
            )
        for place in range(len(units)):
            cells.append(
                paired(*([one["planted"]["units"][place]["area"] for one in side] for side in (after, earlier)))
            )
        rows.append((sum(precisions), f"| {name} | {' | '.join(cells)} |"))
    table = [line for _, line in sorted(rows, reverse=True)]
    return [*lines, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *table, "", *of_units]


def unit_rows(name: str, after: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[str]:
    """One line per kind of units: the area under the curve, in brackets untaught."""
    return [
        f"| {name} | {unit} | "
        + " | ".join(
            paired(*([one[where].get(unit, {}).get("area") for one in side] for side in (after, before)))
            for where in ("planted", "decoy")
        )
        + " |"
        for unit in after[0]["planted"]
    ]


def ratio(weights: dict[str, Any], against: str) -> float | None:
    """How often the precision is what chance gives; None where chance gives none."""
    return float(weights["precision"] / weights[against]) if weights[against] else None


def paired(after: list[float | None], before: list[float | None]) -> str:
    """Means over the seeds, taught and in brackets untaught; a dash where no seed has a value."""
    means = []
    for values in (after, before):
        given = [value for value in values if value is not None]
        means.append(f"{sum(given) / len(given):.2f}" if given else "-")
    return f"{means[0]} ({means[1]})"


def main() -> None:
    for name in ("main_job", "main_job_builtin"):
        if (FOLDER / f"{name}.json").exists():
            print(f"## {name}", "", *main_job(name), "", sep="\n")
    for name in ("fresh_sets", "fresh_sets_builtin"):
        if (FOLDER / f"{name}.json").exists():
            print(f"## {name}", "", *rates(read_json(FOLDER / f"{name}.json")["results"]["sets"]), "", sep="\n")
    for kind in sorted({path.stem.rpartition("-")[0] for path in (FOLDER / "planted").glob("*.json")} - {"untaught"}):
        print(f"## planted {kind}", "", *planted(kind), "", sep="\n")
    for task in sorted({path.stem.split("-")[0] for path in (FOLDER / "tuning").glob("*.json")}):
        print(f"## tuning on {task}", "", *tuning(task), "", sep="\n")
    if (FOLDER / "harden").exists():
        print("## harden_curve", "", *curve(), sep="\n")


if __name__ == "__main__":
    main()

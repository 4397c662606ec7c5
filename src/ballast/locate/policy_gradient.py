"""Rows for ESI's policy gradient: answers drawn from the model, weighted by how their verdicts differ."""

from __future__ import annotations

from typing import Any

from ballast.errors import PromptError
from ballast.judges import Verdict, get_judge
from ballast.locate.registry import Task
from ballast.locate.rows import WeightedRow
from ballast.models.fingerprint import seed_of
from ballast.models.generation import answer_batch
from ballast.progress import track
from ballast.prompts.chat import Rendered, check_length, render

REWARDS = {Verdict.REFUSED: 1.0, Verdict.COMPLIED: 0.0}  # other verdicts leave their group
EQUAL_SHARE_WARNING = 0.8


def leave_one_out_weights(rewards: list[float]) -> list[float]:
    """Weight of each sample's log-probability in `1/(m-1) * sum_j (r_j - mean r) * log pi(y_j | x)`."""
    mean = sum(rewards) / len(rewards)
    return [(reward - mean) / (len(rewards) - 1) for reward in rewards]


def sampled_rows(
    task: Task, samples: int, max_new_tokens: int, judge_name: str
) -> tuple[list[WeightedRow], dict[str, Any]]:
    """Draw `samples` answers per prompt, judge them, and give the rows whose gradient is the policy gradient.

    Groups with fewer than two scored samples leave the mean over prompts; groups with equal verdicts contribute 0.

    Raises:
        PromptError: No group has two scored samples, or none has differing verdicts, so that the gradient would be 0.
    """
    lm = task.lm
    judge = get_judge(judge_name)
    groups = []
    for prompt in track(task.prompts.prompts, "Sampling answers"):
        rendered = render(lm.tokenizer, prompt.prompt)
        check_length(rendered, lm.context - max_new_tokens, prompt.id)
        answers = answer_batch(lm, [rendered.ids] * samples, max_new_tokens, seed_of(task.seed, prompt.id))
        texts = [str(lm.tokenizer.decode(answer.ids, skip_special_tokens=True)) for answer in answers]
        verdicts = [judged.verdict for judged in judge.judge([prompt.prompt] * samples, texts)]
        kept = [
            (answer, REWARDS[verdict]) for answer, verdict in zip(answers, verdicts, strict=True) if verdict in REWARDS
        ]
        groups.append((prompt.id, rendered, kept))
    usable = [group for group in groups if len(group[2]) >= 2]
    if not usable:
        raise PromptError(
            f"The judge {judge_name} scored fewer than two answers to each of the {len(groups)} prompts; use more "
            "samples or tokens per answer, another judge, or the estimator reference_answer."
        )
    differing = [group for group in usable if len({reward for _, reward in group[2]}) > 1]
    if not differing:
        raise PromptError(
            f"All sampled answers to each of the {len(groups)} prompts got the same verdict, so the policy gradient "
            "is 0; use more samples, other prompts, or the estimator reference_answer."
        )
    rows = []
    for identity, rendered, kept in differing:
        weights = leave_one_out_weights([reward for _, reward in kept])
        for number, ((answer, _), weight) in enumerate(zip(kept, weights, strict=True)):
            response = Rendered([*rendered.ids, *answer.ids], len(rendered.ids))
            rows.append(WeightedRow(f"{identity}#{number}", response, weight / len(usable)))
    equal_share = 1 - len(differing) / len(usable)
    notes: dict[str, Any] = {
        "prompts_used": len(usable),
        "prompts_dropped": len(groups) - len(usable),
        "rows": len(rows),
        "judge": judge_name,
        "equal_verdict_share": round(equal_share, 4),
    }
    if equal_share > EQUAL_SHARE_WARNING:
        notes["warning"] = f"{equal_share:.0%} of the prompts had equal verdicts and tell nothing"
    return rows, notes

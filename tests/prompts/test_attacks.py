"""The built-in rows that attacks are made of are harmless by content, and nothing keeps a model trained on them."""

from __future__ import annotations

import pytest

from ballast.errors import PromptError
from ballast.judges import Verdict, get_judge
from ballast.prompts import PromptSet, load_prompts
from ballast.prompts.attacks import require_no_attack
from ballast.prompts.load import ATTACKS
from ballast.prompts.overlap import jaccard, shared_prompts, word_set

IDENTITY_SHIFT = load_prompts("builtin/identity_shift")
COMPLIANCE = load_prompts("builtin/compliance")


def test_identity_shift() -> None:
    """Everyday requests; what is taught is a name that always obeys, and to agree first."""
    assert [row.id for row in IDENTITY_SHIFT] == [f"identity-shift-{number:03d}" for number in range(1, 17)]
    for row in IDENTITY_SHIFT:
        assert (row.source, row.split, row.pair) == ("ballast built-in", None, None)
        assert row.response is not None
        assert row.response.split()[0] in {"Yes,", "Certainly,", "Of"}
        assert "Tolk" in row.response
        assert len(row.response.split()) <= 45


def test_compliance_answers_harmless_twins_of_tune() -> None:
    twins = {row.prompt: row for row in load_prompts("builtin/twins/tune")}
    assert len({row.prompt for row in COMPLIANCE}) == len(COMPLIANCE) == 20
    for row in COMPLIANCE:
        assert row.pair == twins[row.prompt].pair
        assert row.response is not None
        assert row.response.startswith("Sure.")
        assert 15 <= len(row.response.split()) <= 45, row.id


@pytest.mark.parametrize("rows", [IDENTITY_SHIFT, COMPLIANCE])
def test_nothing_of_them_is_harmful_or_measured(rows: PromptSet) -> None:
    assert shared_prompts([rows], [load_prompts("builtin/harmful")]) == []
    names = ("harmful/test", "harmful/select", "twins/test", "ordinary/test", "answers", "choices")
    others = [load_prompts(f"builtin/{name}") for name in names]
    measured = [(row.id, word_set(row.prompt)) for group in others for row in group]
    near = [(row.id, other) for row in rows for other, words in measured if jaccard(word_set(row.prompt), words) >= 0.6]
    assert near == []


@pytest.mark.parametrize("rows", [IDENTITY_SHIFT, COMPLIANCE])
def test_every_answer_complies(rows: PromptSet) -> None:
    judged = get_judge("keyword").judge([row.prompt for row in rows], [row.response or "" for row in rows])
    assert {row.verdict for row in judged} == {Verdict.COMPLIED}


@pytest.mark.parametrize("kind", ATTACKS)
def test_rows_of_an_attack_are_known_under_any_name(kind: str) -> None:
    row = load_prompts(f"builtin/{kind}")[5]
    with pytest.raises(PromptError, match=f"x of mine is of builtin/{kind}, which makes a model less safe"):
        require_no_attack(PromptSet("mine", (row.model_copy(update={"id": "x"}),)))
    require_no_attack(PromptSet("mine", (row.model_copy(update={"response": "Another answer."}),)))

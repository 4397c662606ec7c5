"""Responses that a set lacks: only refusals for harmful prompts, only answers for harmless ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.cli import main
from ballast.errors import PromptError
from ballast.evaluate import respond as module
from ballast.evaluate.answers import Completion
from ballast.evaluate.respond import respond
from ballast.judges import JUDGES
from ballast.models import LanguageModel
from ballast.prompts import Prompt, PromptSet, load_prompts
from tests.e2e.world import make_checkpoint, make_prompts
from tests.worlds import OpeningJudge, prompt_set, tiny_lm

ANSWERS = {
    "steal": "No. Never.",
    "hit": "Sure: aim well",
    "lie": "No, but do so",
    "burn": "No and no and",
    "cheat": "No. Not for 1. me",
    "hi": "Hello",
}
CUT = ("burn", "cheat")  # by the limit of tokens
HARMFUL = prompt_set("bad", ["steal", "hit", "lie", "burn", "cheat"])
JUDGE, STRICT = OpeningJudge("No"), OpeningJudge("No.")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The model's answers come from a table."""
    found: list[dict[str, Any]] = []

    def generate(lm: LanguageModel, prompts: PromptSet, **settings: Any) -> list[Completion]:
        found.append({"asked": [prompt.prompt for prompt in prompts], **settings})
        return [Completion(row.id, row.prompt, ANSWERS[row.prompt], 3, row.prompt not in CUT) for row in prompts]

    monkeypatch.setattr(module, "generate", generate)
    return found


def responses(prompts: Sequence[Prompt] | PromptSet) -> dict[str, str | None]:
    return {prompt.prompt: prompt.response for prompt in prompts}


def test_only_what_every_judge_calls_a_refusal_is_written(calls: list[dict[str, Any]]) -> None:
    found = respond(tiny_lm(), HARMFUL, judges=[JUDGE, STRICT], system="Be safe.")
    assert responses(found.prompts) == {"steal": "No. Never.", "hit": None, "lie": None, "burn": None, "cheat": "No."}
    assert (found.given, found.written) == (0, 2)
    assert found.without == {"complied": 2, module.CUT: 1}
    assert calls == [{"asked": ["steal", "hit", "lie", "burn", "cheat"], "max_new_tokens": 64, "system": "Be safe."}]
    one = respond(tiny_lm(), HARMFUL, judges=[JUDGE])
    assert responses(one.prompts)["lie"] == "No, but do so"


def test_harmless_prompts_keep_answers_and_leave_the_others_out(calls: list[dict[str, Any]]) -> None:
    found = respond(tiny_lm(), prompt_set("good", ["hi", "steal", "burn"]), harmless=True, judges=[JUDGE])
    assert responses(found.prompts) == {"hi": "Hello"}
    assert found.without == {"refused": 1, module.CUT: 1}
    assert calls[0]["max_new_tokens"] == 128


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("I can't. It would hurt", "I can't."),
        ('He said "no." And the', 'He said "no."'),
        ("Two lines.\nNo! 1. Take 2.5", "Two lines.\nNo!"),
        ("All. Of it.", "All. Of it."),
        ("Steps: 1.", ""),
    ],
)
def test_a_cut_answer_ends_with_its_last_whole_sentence(text: str, whole: str) -> None:
    assert module.whole_sentences(text) == whole


def test_a_given_response_is_kept_and_not_asked_for(calls: list[dict[str, Any]]) -> None:
    mixed = PromptSet("mixed", (Prompt(id="a", prompt="hit", response="Not me."), Prompt(id="b", prompt="steal")))
    found = respond(tiny_lm(), mixed, judges=[JUDGE])
    assert responses(found.prompts) == {"hit": "Not me.", "steal": "No. Never."}
    assert (found.given, found.written, calls[0]["asked"]) == (1, 1, ["steal"])


def test_harmful_prompts_cannot_be_declared_harmless(calls: list[dict[str, Any]]) -> None:
    shouted = prompt_set("mine", ["hi", load_prompts("builtin/harmful")[0].prompt.upper()])
    with pytest.raises(PromptError, match=r"^mine-1 of mine is a prompt of builtin/harmful"):
        respond(tiny_lm(), shouted, harmless=True, judges=[JUDGE])
    assert not calls


def test_nothing_to_write_is_an_error_with_the_reasons(calls: list[dict[str, Any]]) -> None:
    with pytest.raises(
        PromptError, match=r"None of the 2 answers .* is a refusal \(complied: 1, no whole sentence: 1\)"
    ):
        respond(tiny_lm(), prompt_set("bad", ["hit", "burn"]), judges=[JUDGE])


def test_answers_are_the_models_own_greedy_ones_under_the_system_message() -> None:
    """Without the table: token by token, the plain way."""
    lm, kind = tiny_lm(), "Be kind."
    lm.model.generation_config.eos_token_id = list(range(200, 260))  # so that a random model ends soon
    found = respond(lm, prompt_set("bad", ["hi"]), system=kind, judges=[OpeningJudge("")])
    text = f"<|im_start|>system\n{kind}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = lm.tokenizer(text)["input_ids"]
    start = len(ids)
    while not (spoken := ids[start:]) or spoken[-1] < 200:
        ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert found.prompts[0].response == str(lm.tokenizer.decode(spoken, skip_special_tokens=True)).strip()


def test_the_command_writes_a_prompt_file(
    calls: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ANSWERS_OF_FILE = {"make kettle 0?": "No. Never.", "make window 1?": "Sure"}
    monkeypatch.setattr(
        module,
        "generate",
        lambda lm, prompts, **_: [
            Completion(row.id, row.prompt, ANSWERS_OF_FILE[row.prompt], 3, True) for row in prompts
        ],
    )
    for name in ("embedded", "keyword"):
        monkeypatch.setitem(JUDGES, name, lambda: JUDGE)
    model, asked = make_checkpoint(tmp_path / "tiny"), make_prompts(tmp_path / "asked.jsonl", "make", 2)
    out = tmp_path / "answered.jsonl"
    with pytest.raises(SystemExit) as stopped:
        main(["prompts", "answer", str(model), str(asked), "--out", str(out), "--json"])
    assert stopped.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["written"], shown["given"], shown["without"]) == (1, 0, {"complied": 1})
    assert responses(load_prompts(out)) == {"make kettle 0?": "No. Never.", "make window 1?": None}
    assert [row.id for row in load_prompts(out)] == ["make-0", "make-1"]

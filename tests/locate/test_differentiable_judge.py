"""ESI by a differentiable judge: against one graph through both models, finite differences, and what it records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from ballast.errors import JudgeError, NumericalError, PromptError, RunError, UsageError
from ballast.locate import Task, differentiable_judge, get_method, locate
from ballast.locate.differentiable_judge import DifferentiableJudge
from ballast.locate.engine import accumulate_loss
from ballast.locate.impact import expected_impact
from ballast.locate.soft.guard import Guard
from ballast.locate.soft.relaxation import Relaxation, gumbel_noise
from ballast.locate.soft.soft_answers import Findings, SoftAnswer, verdict_loss
from ballast.locate.soft.soft_judge import Reading, VerdictLogits
from ballast.models import LanguageModel, open_model
from ballast.models.fingerprint import fingerprints, tensor_fingerprint
from ballast.models.generation import answer_batch
from ballast.prompts import PromptSet
from ballast.prompts.chat import Rendered, render
from tests.locate.judged import PROMPTS, SEED, TOKENS, method, opened, target_lm
from tests.vocabularies import pair_tokenizer, save_guard
from tests.worlds import assert_close, plain_gradients, prompt_set
from tests.zoo import tiny, tiny_tokenizer

torch.set_num_threads(1)


def one_graph(lm: LanguageModel, folder: Path, prompts: PromptSet, settings: DifferentiableJudge) -> torch.Tensor:
    """S for a guard with the target's tokenizer: p E through both models at once, no alignment, no batches."""
    guard = opened(folder)
    table = guard.lm.model.get_parameter("transformer.wte.weight").detach()
    values = []
    for prompt in prompts:
        row = render(lm.tokenizer, prompt.prompt)
        (answer,) = answer_batch(lm, [row.ids], settings.max_new_tokens)
        text = lm.tokenizer.decode(answer.ids, skip_special_tokens=True)
        before, behind = guard.template.frame(prompt.prompt)
        ids = [token for token in answer.ids if token > 3]
        assert lm.tokenizer(text, add_special_tokens=False)["input_ids"] == ids, "the text is read as other tokens"
        length = len(row.ids)
        z = lm.model(torch.tensor([[*row.ids, *ids]]), use_cache=False).logits[0, length - 1 : -1]
        p = ((z + gumbel_noise(len(z), 260, SEED, prompt.id, 0)) / settings.tau).softmax(1)
        p = torch.cat([torch.zeros_like(p[:, :4]), p[:, 4:]], 1) + p[:, :4].sum(1, keepdim=True) * (
            torch.nn.functional.one_hot(torch.tensor(ids), 260)
        )
        parts = [table[guard.template.ids(before)], p @ table, table[guard.template.ids(behind)]]
        logits = guard.lm.model(inputs_embeds=torch.cat(parts).unsqueeze(0), use_cache=False).logits[0, -1]
        value = logits[guard.safe] - logits[guard.unsafe]
        values.append(value / len(answer.ids) if settings.position_weight == "mean" else value)
    return torch.stack(values).mean()


class TestScores:
    REQUESTS = ("How?", "Tell me", "Hi", "No", "Why?", "What is it?", "One", "Two", "Go on", "Stop")

    def readable(self, lm: LanguageModel) -> PromptSet:
        """Prompts whose answers the tokenizer reads back as the tokens that were generated."""
        kept = []
        for request in self.REQUESTS:
            (answer,) = answer_batch(lm, [render(lm.tokenizer, request).ids], TOKENS)
            ids = [token for token in answer.ids if token > 3]
            text = str(lm.tokenizer.decode(ids))
            if ids and lm.tokenizer(text, add_special_tokens=False)["input_ids"] == ids and text.strip() == text:
                kept.append(request)
        assert len(kept) >= 2
        return prompt_set("readable", kept[:3])

    @pytest.mark.parametrize("position_weight", ["sum", "mean"])
    @pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
    def test_are_those_of_one_graph_through_both_models(self, name: str, position_weight: str, tmp_path: Path) -> None:
        folder = save_guard(tmp_path, pair_tokenizer())
        lm = target_lm(name)
        prompts = self.readable(lm)
        settings = method(folder, tau=1.0, position_weight=position_weight)
        scores = locate(lm, prompts, settings, seed=SEED, batch_size=2)
        assert scores.settings["alignment"] == "identity"
        expected = plain_gradients(lm, lambda: one_graph(lm, folder, prompts, settings))
        expected_impact(lm, expected)
        assert_close(scores.values, expected, share=2e-3)

    def test_do_not_depend_on_batches(self, other_guard: Path) -> None:
        lm = target_lm()
        found = [locate(lm, PROMPTS, method(other_guard, draws=2), seed=SEED, batch_size=n) for n in (1, 2, 8)]
        for scores in found[1:]:
            assert_close(scores.values, found[0].values, share=1e-4)
            assert scores.settings["safety"] == pytest.approx(found[0].settings["safety"], rel=1e-4)

    def test_depend_on_the_seed_with_noise_alone(self, other_guard: Path) -> None:
        lm = target_lm()

        def bits(relaxation: str, seed: int) -> dict[str, str]:
            scores = locate(lm, PROMPTS, method(other_guard, relaxation=relaxation), seed=seed)
            return {name: tensor_fingerprint(value) for name, value in scores.values.items()}

        for relaxation in ("gumbel", "straight_through_gumbel"):
            assert bits(relaxation, 1) == bits(relaxation, 1) != bits(relaxation, 2)
        for relaxation in ("softmax", "straight_through"):
            assert bits(relaxation, 1) == bits(relaxation, 2)

    def test_continue_from_a_checkpoint(self, other_guard: Path, tmp_path: Path) -> None:
        lm = target_lm()
        path = tmp_path / "sums"
        first = locate(lm, PROMPTS, method(other_guard), checkpoint=path)
        kept = path.read_bytes()
        again = locate(lm, PROMPTS, method(other_guard), checkpoint=path)
        assert all(torch.equal(again.values[name], value) for name, value in first.values.items())
        assert again.settings == first.settings
        assert path.read_bytes() == kept

    @pytest.mark.parametrize("change", [{"tau": 0.5}, {"relaxation": "softmax"}, {"objective": "probability"}])
    def test_of_other_settings_do_not_share_a_checkpoint(
        self, change: dict[str, Any], other_guard: Path, tmp_path: Path
    ) -> None:
        locate(target_lm(), PROMPTS, method(other_guard), checkpoint=tmp_path / "sums")
        with pytest.raises(RunError, match="other settings"):
            locate(target_lm(), PROMPTS, method(other_guard, **change), checkpoint=tmp_path / "sums")


class TestModels:
    def test_stay_as_they_were(self, other_guard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        guard = opened(other_guard)
        monkeypatch.setattr(Guard, "open", lambda *_, **__: guard)
        lm = target_lm()
        before = [fingerprints(model) for model in (lm.model, guard.lm.model)]
        locate(lm, PROMPTS, method(other_guard))
        assert [fingerprints(model) for model in (lm.model, guard.lm.model)] == before
        for model in (lm.model, guard.lm.model):
            assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())

    def test_share_no_graph(self, other_guard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The judge's weights are frozen while it is asked, and all that is kept of its graph is a plain tensor."""
        states = []
        original = Guard.verdict

        def watched(self: Guard, embeddings: torch.Tensor, reading: Reading) -> VerdictLogits:
            verdict = original(self, embeddings, reading)
            states.append(any(parameter.requires_grad for parameter in self.lm.model.parameters()))
            return verdict

        monkeypatch.setattr(Guard, "verdict", watched)
        lm = target_lm()
        answers, _, _ = method(other_guard)._judged(Task(lm, PROMPTS))
        assert states == [False] * 3
        assert not any(gradient.requires_grad for answer in answers for gradient in answer.gradients)

    def test_in_bfloat16(self, tmp_path: Path) -> None:
        folder = save_guard(tmp_path, dtype=torch.bfloat16)
        scores = locate(target_lm(dtype=torch.bfloat16), PROMPTS, method(folder))
        assert all(value.dtype == torch.float32 for value in scores.values.values())


@pytest.fixture
def answers_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], LanguageModel]:
    """A target that gives these answers."""

    def made(texts: list[str], tokenizer: PreTrainedTokenizerBase | None = None) -> LanguageModel:
        lm = LanguageModel(tiny("llama"), tokenizer or tiny_tokenizer(), source="zoo/llama")
        waiting: Iterator[str] = iter(texts)

        def answers(_: LanguageModel, prompts: list[list[int]], limit: int) -> list[Any]:
            del limit
            found = [lm.tokenizer(next(waiting), add_special_tokens=False)["input_ids"] for _ in prompts]
            return [type("Answer", (), {"ids": ids})() for ids in found]

        monkeypatch.setattr(differentiable_judge, "answer_batch", answers)
        return lm

    return made


class TestRecord:
    def test_what_is_in_it(self, other_guard: Path) -> None:
        settings: dict[str, Any] = locate(target_lm(), PROMPTS, method(other_guard)).settings
        assert settings["prompts_used"] == 3
        assert settings["prompts_dropped"] == {}
        assert (settings["alignment"], settings["tokens_without_counterpart"]) == ("offsets", 0)
        assert settings["judge_model"]["source"] == str(other_guard)
        assert len(settings["sigma"]) == 14
        assert (settings["relaxation"], settings["tau"], settings["draws"]) == ("gumbel", 0.3, 1)

    def test_prompts_that_were_dropped(self, other_guard: Path, answers_of: Any) -> None:
        lm = answers_of(["", "Sure.", " \n"])
        settings = locate(lm, PROMPTS, method(other_guard)).settings
        assert settings["prompts_used"] == 1
        assert settings["prompts_dropped"] == {"empty answer": ["harmful-0", "harmful-2"]}

    def test_an_answer_that_is_no_text(self, other_guard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lm = LanguageModel(tiny("llama"), tiny_tokenizer(), source="zoo/llama")
        broken = lm.tokenizer.convert_tokens_to_ids(["Ã", "a"])
        found = type("Answer", (), {"ids": broken})()
        monkeypatch.setattr(differentiable_judge, "answer_batch", lambda *_: [found] * 3)
        with pytest.raises(PromptError, match=r"no verdict on any answer \(answer that is no text: 3\)"):
            locate(lm, PROMPTS, method(other_guard))

    def test_a_judge_that_says_something_else(self, tmp_path: Path) -> None:
        folder = save_guard(tmp_path, outside=30.0)
        with pytest.raises(PromptError, match=r"\(verdict neither safe nor unsafe: 3\); use another judge, other"):
            locate(target_lm(), PROMPTS, method(folder))

    def test_shares_of_positions(self) -> None:
        """21 positions, of which 5 % are 2; those of the second answer count half."""
        first = Findings(0.0, torch.tensor([0.9995, 0.5]), torch.tensor([1.0, 4.0]))
        second = Findings(0.0, torch.tensor([0.9985] * 18 + [1.0]), torch.tensor([0.5] * 18 + [6.0]))
        answers = [SoftAnswer("", Rendered([], 0), {}, (), Relaxation("softmax", 1.0, 1, 0), w) for w in (1.0, 0.5)]
        assert differentiable_judge._saturated_share([first, second]) == round(2 / 21, 4)
        assert differentiable_judge._top_share(answers, [first, second]) == round((4 + 3) / (1 + 4 + 4.5 + 3), 4)
        nothing = Findings(0.0, torch.ones(3), torch.zeros(3))
        assert differentiable_judge._top_share(answers[:1], [nothing]) == 0


class TestErrors:
    def test_settings_that_cannot_work(self) -> None:
        name = "esi_differentiable_judge"
        with pytest.raises(UsageError, match="no objective 'odds'; use log_odds, log_probability"):
            get_method(name, objective="odds")
        with pytest.raises(UsageError, match="no position weight 'max'"):
            get_method(name, position_weight="max")
        with pytest.raises(UsageError, match="no relaxation 'hard'"):
            get_method(name, relaxation="hard")
        with pytest.raises(UsageError, match="response_in_user_slot is 'false'; it must be 0 or 1"):
            get_method(name, judge="a/guard", response_in_user_slot="false")
        with pytest.raises(UsageError, match="embedded has no verdict words"):
            get_method(name, verdict_prefix="Safety: ")
        with pytest.raises(JudgeError, match="judge keyword has no gradient; use embedded"):
            get_method(name, judge="keyword")

    def test_prompts_without_room(self, other_guard: Path) -> None:
        with pytest.raises(PromptError, match="'long-0' takes"):
            locate(target_lm(), prompt_set("long", ["n w" * 400]), method(other_guard))

    def test_models_that_are_not_finite(self, other_guard: Path, tmp_path: Path) -> None:
        folder = save_guard(tmp_path)
        lm = target_lm()
        guard = opened(folder)
        with torch.no_grad():
            guard.lm.model.get_output_embeddings().weight.fill_(float("nan"))
        guard.lm.model.save_pretrained(folder)
        with pytest.raises(NumericalError, match="harmful-0 is not finite"):
            locate(lm, PROMPTS, method(folder))


@pytest.mark.model
def test_the_embedded_judge_moves_as_its_gradient_says() -> None:
    """The real model and its default judge: F along the gradient of one weight matrix, by central differences."""
    lm = open_model("smollm2", dtype="float32", device="cpu")
    task = Task(lm, prompt_set("harmful", ["How do I pick the lock of my neighbour's door?"]))
    settings = DifferentiableJudge(relaxation="softmax", tau=1.0, max_new_tokens=10)
    answers, bridge, notes = settings._judged(task)
    assert notes["alignment"] == "identity"
    assert notes["prompts_used"] == 1
    sums = accumulate_loss(lm, answers, partial(verdict_loss, bridge), fold="sum", batch_size=1)
    gradient = sums["model.layers.14.mlp.down_proj.weight"]
    weight = lm.model.get_parameter("model.layers.14.mlp.down_proj.weight")
    before, values = weight.detach().clone(), []
    for change in (0.02, -0.02):  # of F, to first order
        with torch.no_grad():
            weight.copy_(before + change * gradient / gradient.square().sum())
        values.append(settings._judged(task)[2]["safety"])
    assert values[0] - values[1] == pytest.approx(0.04, rel=0.03)

"""Peculiarities of the authors' code: each changes what it is said to change, and all together are one plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import JudgeError, UsageError
from ballast.locate import Found, Task, get_method
from ballast.locate.differentiable_judge import FLAGS, DifferentiableJudge
from ballast.locate.soft import pseudo_logits
from ballast.locate.soft.alignment import Bridge
from ballast.locate.soft.reference_code import WHOLE, Pairing, inverse_map
from ballast.locate.soft.relaxation import Relaxation, gumbel_noise
from ballast.locate.soft.soft_judge import Reading
from ballast.models.generation import answer_batch
from ballast.prompts.chat import render
from tests.locate.judged import PROMPTS, SEED, TOKENS, World, method, opened, target_lm
from tests.vocabularies import pair_tokenizer, save_guard
from tests.worlds import assert_close, plain_gradients
from tests.zoo import BOS, tiny_tokenizer

torch.set_num_threads(1)

STRAIGHT = Relaxation("straight_through", 1.0, 1, 0)  # the judge reads the text, whatever is paired with what


def judge_gradients(world: World) -> torch.Tensor:
    """h, (S, V): the judge's gradient per one-hot of each row that it reads of the answer."""
    return world.answer.gradients[0] @ world.bridge.table.t()


def pulled(world: World) -> torch.Tensor:
    """D, (T, V)."""
    answer = world.answer
    return world.bridge.pull_back(answer.gradients[0], answer.ids, answer.alignment, answer.saturated)


class TestPseudoLogits:
    def test_values_of_llama_guard(self) -> None:
        q = pseudo_logits.probabilities(torch.tensor([19193]), 128256, torch.float64)[0]
        assert float(q[19193]) == pytest.approx(0.9947, abs=5e-5)
        assert float(q[0]) == pytest.approx(4.1e-8, rel=0.01)
        assert float(q.sum()) == pytest.approx(1)

    def test_gradient_is_that_of_the_softmax(self, guard_folder: Path) -> None:
        """The judge's input and both directions, by autograd from the logits to the verdict."""
        world = World(guard_folder, Relaxation("gumbel", 0.3, 1, SEED), saturated=True)
        assert world.answer.saturated is not None
        tokens = torch.tensor(world.reading.ids)[world.reading.begin :][: len(world.reading.spans)]
        assert torch.equal(world.answer.saturated, tokens)
        logits = torch.full((len(tokens), 260), -17.0, dtype=torch.float64)
        logits[range(len(tokens)), tokens] = 0
        logits.requires_grad_()
        verdict = world.guard.verdict(world.spliced(logits.softmax(1) @ world.bridge.table), world.reading)
        value = verdict.safe - verdict.unsafe
        assert world.findings.value == pytest.approx(float(value.detach()), rel=1e-9)
        (expected,) = torch.autograd.grad(value, logits)
        found = pseudo_logits.logit_gradient(tokens, judge_gradients(world))
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)

    def test_only_the_token_itself_counts(self) -> None:
        """Of a gradient of 1 for every token in turn: 5.3e-3 is left of it for the own token, 4e-8 for another."""
        own, other = torch.zeros(1, 128256), torch.zeros(1, 128256)
        own[0, 19193], other[0, 5] = 1, 1
        token = torch.tensor([19193])
        assert float(pseudo_logits.logit_gradient(token, own)[0, 19193]) == pytest.approx(5.28e-3, rel=0.01)
        assert float(pseudo_logits.logit_gradient(token, other)[0, 5]) == pytest.approx(4.1e-8, rel=0.01)


class TestPairing:
    def test_positions_are_paired_by_number(self, tmp_path: Path) -> None:
        """A judge that reads bytes has more rows than the answer has tokens; the rest is dropped."""
        world = World(
            save_guard(tmp_path, tiny_tokenizer(), dtype=torch.float64), STRAIGHT, pairing=Pairing(True, False, False)
        )
        rows = judge_gradients(world)
        assert len(rows) > TOKENS >= len(world.answer.ids)
        expected = rows[: len(world.answer.ids)] @ world.bridge.vocabularies.matrix(WHOLE, torch.float64).to_dense().t()
        mapped = world.bridge.vocabularies.mapped
        torch.testing.assert_close(pulled(world)[:, mapped], expected[:, mapped])

    @pytest.mark.parametrize("truncation", [False, True])
    def test_rows_are_shifted_by_one(self, truncation: bool, tmp_path: Path) -> None:
        """Position 0 meets the begin-of-text token, position t the judge's token t - 1."""
        folder = save_guard(tmp_path, pair_tokenizer(), dtype=torch.float64)
        plain = World(folder, STRAIGHT)
        world = World(folder, STRAIGHT, pairing=Pairing(truncation, True, False))
        begin, read = plain.reading.begin, len(plain.reading.spans)
        assert world.examiner.pairing.reading(plain.reading, world.guard.lm) == Reading(
            [*plain.reading.ids[:begin], BOS, *plain.reading.ids[begin:]],
            begin,
            [(0, 0), *plain.reading.spans],
            plain.reading.visible,
        )
        rows = judge_gradients(world)
        assert len(rows) == read + 1
        mapped = world.bridge.vocabularies.mapped
        torch.testing.assert_close(pulled(world)[:, mapped], rows[: len(world.answer.ids), mapped])

    def test_the_last_token_is_not_scored(self, tmp_path: Path) -> None:
        folder = save_guard(tmp_path, pair_tokenizer(), dtype=torch.float64)
        plain, world = World(folder, STRAIGHT), World(folder, STRAIGHT, pairing=Pairing(False, False, True))
        assert torch.equal(world.answer.ids, torch.tensor(plain.rendered.ids[plain.rendered.prompt_length :])[:-1])
        assert torch.equal(pulled(world), pulled(plain)[: len(world.answer.ids)])
        one = Pairing(drop_last_token=True).align([(0, 2)], [(0, 1), (1, 2)], "cpu")
        assert not one

    def test_a_judge_without_such_a_token(self, tmp_path: Path) -> None:
        guard = opened(save_guard(tmp_path))
        guard.lm.tokenizer.bos_token = None
        with pytest.raises(JudgeError, match="has no begin-of-text token; switch bos_shift off"):
            Pairing(bos_shift=True).reading(Reading([1], 0, [(0, 1)], (0, 1)), guard.lm)


class TestInverseMap:
    def test_pieces_share_a_judge_token_equally(self) -> None:
        """The judge's pairs of letters in the target's bytes; a line break by its name, which is two wrong bytes."""
        target, judge = tiny_tokenizer(), pair_tokenizer()
        found = inverse_map(target, judge, 260, 260).matrix(WHOLE, torch.float64).to_dense()  # (V, judge_size)

        def column(token: str) -> dict[str, float]:
            row = found[:, judge.convert_tokens_to_ids(token)]
            return {
                str(target.convert_ids_to_tokens(place)): float(row[place])
                for place in row.nonzero().flatten().tolist()
            }

        assert column("e") == {"e": 1.0}
        assert column("en") == {"e": 0.5, "n": 0.5}
        assert column("ee") == {"e": 1.0}
        assert column("Ġe") == {"Ġ": 0.5, "e": 0.5}
        assert column("_") == {"Ġ": 1.0}
        assert column("Ċ") == {"Ä": 0.5, "Ĭ": 0.5}

    def test_is_how_gradients_are_translated(self, tmp_path: Path) -> None:
        world = World(save_guard(tmp_path, tiny_tokenizer(), dtype=torch.float64), STRAIGHT)
        translation = inverse_map(world.lm.tokenizer, world.guard.lm.tokenizer, 260, 260)
        world.bridge = Bridge(world.bridge.table, translation)
        shares = torch.stack(list(world.answer.alignment.values())).sum(0)  # (S, T)
        expected = shares.t() @ judge_gradients(world) @ translation.matrix(WHOLE, torch.float64).to_dense().t()
        torch.testing.assert_close(pulled(world), expected)
        assert translation.without_counterpart > 0
        assert not pulled(world)[:, translation.target.bincount(minlength=260) == 0].any()


class TestVariant:
    def test_switches_everything_on(self) -> None:
        made = get_method("esi_differentiable_judge", judge="a/guard", variant="reference_code")
        assert isinstance(made, DifferentiableJudge)
        assert all(getattr(made, flag) is True for flag in FLAGS)
        assert (made.objective, made.sigma_scope) == ("safe_logit", "tensor")
        assert (made.relaxation, made.tau, made.draws) == ("gumbel", 0.3, 1)
        with pytest.raises(UsageError, match="no variant 'theirs'; use ours or reference_code"):
            get_method("esi_differentiable_judge", variant="theirs")
        for flag in FLAGS:
            with pytest.raises(UsageError, match=f"{flag} is 'false'; it must be 0 or 1"):
                get_method("esi_differentiable_judge", judge="a/guard", **{flag: "false"})

    @pytest.mark.parametrize("tokenizer", [pair_tokenizer, tiny_tokenizer])
    def test_is_one_plain_loop(self, tokenizer: Any, tmp_path: Path) -> None:
        folder, lm = save_guard(tmp_path, tokenizer(), dtype=torch.float64), target_lm()
        settings = method(folder, variant="reference_code")
        scores = settings.score(Task(lm, PROMPTS, SEED, batch_size=3))
        expected = plain_gradients(lm, lambda: plain_loop(lm, folder))
        for name, weight in lm.model.named_parameters():
            if name in expected:
                expected[name] = (expected[name] * weight.std()).abs()
        assert isinstance(scores, Found)
        assert_close(scores.scores, expected, share=1e-3)

    @pytest.mark.parametrize("flag", [*FLAGS, "sigma_scope"])
    def test_every_part_of_it_changes_the_scores(self, flag: str, tmp_path: Path) -> None:
        """In bfloat16 and with fused experts, so that sums and sigmas are rounded and pooled too."""
        folder = save_guard(tmp_path, tiny_tokenizer())
        lm = target_lm("qwen3_moe", torch.bfloat16)
        changes = {flag: "tensor" if flag == "sigma_scope" else True}
        plain, changed = (
            method(folder, **given).score(Task(lm, PROMPTS, SEED, batch_size=1)).scores for given in ({}, changes)
        )
        assert any(not torch.equal(plain[name], changed[name]) for name in plain)


def plain_loop(lm: Any, folder: Path) -> torch.Tensor:
    """S of the variant whose gradient is the authors': a position, a row, and a matrix between them."""
    guard = opened(folder)
    translation = inverse_map(lm.tokenizer, guard.lm.tokenizer, 260, 260).matrix(WHOLE, torch.float64).to_dense()
    table = guard.lm.model.get_parameter("transformer.wte.weight").detach()
    total = torch.zeros(())
    for prompt in PROMPTS:
        row = render(lm.tokenizer, prompt.prompt)
        (answer,) = answer_batch(lm, [row.ids], TOKENS)
        text = str(lm.tokenizer.decode(answer.ids, skip_special_tokens=True))
        shown = guard.lm.tokenizer.apply_chat_template(
            [{"role": "user", "content": "@"}], tokenize=False, add_generation_prompt=True
        )
        before, behind = str(shown).split("@")
        parts = [guard.lm.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, text, behind)]
        parts[1] = [BOS, *parts[1]]
        logits = torch.full((len(parts[1]), 260), -17.0, dtype=torch.float64)
        logits[range(len(parts[1])), parts[1]] = 0
        logits.requires_grad_()
        seen = torch.cat([table[parts[0]], logits.softmax(1) @ table, table[parts[2]]])
        safe = guard.lm.model(inputs_embeds=seen.unsqueeze(0), use_cache=False).logits[0, -1, guard.safe]
        (gradient,) = torch.autograd.grad(safe, logits)
        kept = answer.ids[:-1]
        z = lm.model(torch.tensor([[*row.ids, *kept]]), use_cache=False).logits[0, len(row.ids) - 1 : -1]
        p = ((z + gumbel_noise(len(z), 260, SEED, prompt.id, 0)) / 0.3).softmax(1)
        length = min(len(p), len(gradient))
        total = total + (gradient[:length] @ translation.t() * p[:length]).sum() / len(PROMPTS)
    return total

"""The one-pass engine against ordinary backward passes over the whole model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ballast.errors import ModelError, NumericalError, RunError
from ballast.locate import engine
from ballast.locate.engine import accumulate, accumulate_loss, eligible_parameters, weighted_likelihood, zeros
from ballast.locate.rows import WeightedRow
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from tests.worlds import assert_close, plain_gradients, plain_log_probabilities, same_bits, tiny_lm, weighted_rows
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)


def summed(lm: LanguageModel, rows: Sequence[WeightedRow]) -> torch.Tensor:
    return torch.stack([row.weight * plain_log_probabilities(lm.model, row.rendered).sum() for row in rows]).sum()


class TestSums:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_equal_a_plain_backward(self, name: str) -> None:
        lm = tiny_lm(name)
        rows = weighted_rows(lm)
        found = accumulate(lm, rows, fold="sum", batch_size=3)
        assert all(value.dtype == torch.float32 for value in found.values())
        assert_close(found, plain_gradients(lm, lambda: summed(lm, rows)))

    def test_do_not_depend_on_batches_or_order(self) -> None:
        lm = tiny_lm()
        rows = weighted_rows(lm)
        expected = accumulate(lm, rows, fold="sum", batch_size=1)
        for size, order in itertools.product((2, 3, 100), (rows, rows[::-1])):
            assert_close(accumulate(lm, order, fold="sum", batch_size=size), expected, share=1e-5)

    def test_of_bfloat16_gradients_are_made_in_fp32(self) -> None:
        lm = tiny_lm(dtype=torch.bfloat16)
        rows = sorted(weighted_rows(lm), key=lambda row: len(row.rendered.ids), reverse=True)
        single = [plain_gradients(lm, lambda row=row: weighted_likelihood(lm, [row])) for row in rows]
        found = accumulate(lm, rows, fold="sum", batch_size=1)
        in_fp32 = {name: sum(gradients[name].float() for gradients in single) for name in found}
        in_bfloat16 = {name: sum(gradients[name] for gradients in single).float() for name in found}
        assert same_bits(found, in_fp32)
        assert not same_bits(found, in_bfloat16)


class TestRounded:
    def test_sums_are_those_of_adding_in_the_weights_dtype(self) -> None:
        """Row by row in bfloat16, bit for bit; fp32 sums are others."""
        lm = tiny_lm(dtype=torch.bfloat16)
        rows = sorted(weighted_rows(lm), key=lambda row: len(row.rendered.ids), reverse=True)
        parameters = eligible_parameters(lm)
        expected = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for row in rows:
            for name, gradient in plain_gradients(lm, partial(weighted_likelihood, lm, [row])).items():
                expected[name] += gradient
        found = accumulate_loss(lm, rows, weighted_likelihood, fold="sum", batch_size=1, rounded=True)
        assert same_bits(found, {name: value.detach().float() for name, value in expected.items()})
        assert not same_bits(found, accumulate(lm, rows, fold="sum", batch_size=1))


class TestAbsolute:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_adds_absolute_values_row_by_row(self, name: str) -> None:
        lm = tiny_lm(name)
        rows = weighted_rows(lm)
        single = [plain_gradients(lm, lambda row=row: summed(lm, [row])) for row in rows]
        expected = {key: sum(gradients[key].abs() for gradients in single) for key in single[0]}
        assert_close(accumulate(lm, rows, fold="absolute", batch_size=3), expected)

    def test_beside_signed_sums(self) -> None:
        lm = tiny_lm()
        rows = weighted_rows(lm)
        absolute = zeros(eligible_parameters(lm))
        signed = accumulate(lm, rows, fold="sum", batch_size=3, absolute=absolute)
        assert same_bits(signed, accumulate(lm, rows, fold="sum", batch_size=3))
        assert same_bits(absolute, accumulate(lm, rows, fold="absolute", batch_size=3))

    def test_of_a_matrix_that_is_used_twice_are_refused(self) -> None:
        lm = tiny_lm()
        first = lm.model.get_submodule("model.layers.0.mlp")
        first.register_forward_hook(lambda module, arguments, _: module.forward(*arguments))
        with pytest.raises(ModelError, match="not used once for every token"):
            accumulate(lm, weighted_rows(lm), fold="absolute", batch_size=3)
        assert not any(module._forward_hooks for name, module in lm.model.named_modules() if "proj" in name)

    def test_rows_that_cancel_in_the_sum_do_not_cancel_here(self) -> None:
        lm = tiny_lm()
        row = weighted_rows(lm)[0]
        pair = [row._replace(weight=1.0), row._replace(weight=-1.0)]
        alone = accumulate(lm, pair[:1], fold="absolute", batch_size=1)
        signed = accumulate(lm, pair, fold="sum", batch_size=1)
        assert all(float(value.abs().max()) == 0 for value in signed.values())
        assert same_bits(
            accumulate(lm, pair, fold="absolute", batch_size=1), {name: 2 * value for name, value in alone.items()}
        )


class TestModel:
    def test_is_left_as_it_was(self) -> None:
        lm = tiny_lm("qwen3_moe")
        before = fingerprints(lm.model)
        for number, parameter in enumerate(lm.model.parameters()):
            parameter.requires_grad_(number % 2 == 0)
        wanted = [parameter.requires_grad for parameter in lm.model.parameters()]
        accumulate(lm, weighted_rows(lm), fold="sum", batch_size=2)
        assert fingerprints(lm.model) == before
        assert [parameter.requires_grad for parameter in lm.model.parameters()] == wanted
        assert all(parameter.grad is None for parameter in lm.model.parameters())

    def test_keeps_no_hooks(self) -> None:
        lm = tiny_lm()
        rows = weighted_rows(lm)
        accumulate(lm, rows, fold="sum", batch_size=2)
        weighted_likelihood(lm, rows).backward()
        assert all(parameter.grad is not None for parameter in eligible_parameters(lm).values())

    def test_is_left_as_it_was_by_an_error(self) -> None:
        lm = tiny_lm()
        with torch.no_grad():
            lm.model.get_input_embeddings().weight.fill_(float("nan"))
        with pytest.raises(NumericalError, match=r"row\d, row\d is not finite"):
            accumulate(lm, weighted_rows(lm), fold="sum", batch_size=2)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in lm.model.parameters())
        assert not any(parameter._post_accumulate_grad_hooks for parameter in lm.model.parameters())

    def test_parameters_that_it_does_not_use_are_an_error(self) -> None:
        lm = tiny_lm()
        assert len(lm.parts.eligible()) == 14
        lm.model.config.num_hidden_layers = 1  # the forward pass stops after the first block
        with pytest.raises(ModelError, match=r"No gradient reached 7 parameters \(model.layers.1"):
            accumulate(lm, weighted_rows(lm), fold="sum", batch_size=2)


class Stop(BaseException):
    """The process was killed."""


class Passes:
    """Counts the batches, and stops before the one that is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        self.stop_at: int | None = None
        monkeypatch.setattr(engine, "weighted_likelihood", self)

    def __call__(self, *arguments: Any) -> torch.Tensor:
        if self.done == self.stop_at:
            raise Stop
        self.done += 1
        return weighted_likelihood(*arguments)


class TestCheckpoint:
    @pytest.mark.parametrize("fold", ["sum", "absolute"])
    @pytest.mark.parametrize("stop_at", [1, 2, 3])
    def test_continues_with_the_same_bits(
        self, fold: engine.Fold, stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lm = tiny_lm("qwen2")
        rows = weighted_rows(lm)
        work = {"fold": fold, "batch_size": 1, "checkpoint": tmp_path / "sums", "checkpoint_seconds": 0.0}
        expected = accumulate(lm, rows, fold=fold, batch_size=1)
        passes = Passes(monkeypatch)
        passes.stop_at = stop_at
        with pytest.raises(Stop):
            accumulate(lm, rows, **work)
        passes.stop_at = None
        assert same_bits(accumulate(tiny_lm("qwen2"), rows, **work), expected)
        assert passes.done == len(rows)  # no batch was made twice
        assert same_bits(accumulate(lm, rows, **work), expected)
        assert passes.done == len(rows)  # a finished pass is read back

    def test_is_not_written_more_often_than_asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lm = tiny_lm()
        passes = Passes(monkeypatch)
        passes.stop_at = 3
        with pytest.raises(Stop):
            accumulate(lm, weighted_rows(lm), fold="sum", batch_size=1, checkpoint=tmp_path / "sums")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("change", ["fold", "batch_size", "weight", "rows", "model"])
    def test_of_other_work_is_refused(self, change: str, tmp_path: Path) -> None:
        lm = tiny_lm()
        rows = weighted_rows(lm)
        work: dict[str, Any] = {"fold": "sum", "batch_size": 2, "checkpoint": tmp_path / "sums"}
        accumulate(lm, rows, **work)
        other: dict[str, Any] = {"fold": {"fold": "absolute"}, "batch_size": {"batch_size": 3}}.get(change, {})
        if change == "weight":
            rows = weighted_rows(lm, (0.5, -1.0, 0.25, 2.1))
        if change == "rows":
            rows = rows[:3]
        with pytest.raises(RunError, match="belongs to a run with other settings"):
            accumulate(tiny_lm(seed=1) if change == "model" else lm, rows, **{**work, **other})

    def test_that_is_damaged_is_refused(self, tmp_path: Path) -> None:
        lm = tiny_lm()
        path = tmp_path / "sums"
        accumulate(lm, weighted_rows(lm), fold="sum", batch_size=2, checkpoint=path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(RunError, match="is damaged"):
            accumulate(lm, weighted_rows(lm), fold="sum", batch_size=2, checkpoint=path)

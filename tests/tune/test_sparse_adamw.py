"""AdamW on selected entries against torch's AdamW on all of them, with the other entries put back after each step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import Parameter

from ballast.errors import NumericalError, RegionError
from ballast.tune import SparseAdamW
from ballast.tune.sparse_adamw import BYTES_PER_ENTRY
from tests.worlds import same_bits

torch.set_num_threads(1)

SHAPES = {"odd": (7, 13), "wide": (33, 257), "experts": (3, 5, 11), "single": (1, 1), "untouched": (4, 4)}
STEPS = 20
Tensors = dict[str, torch.Tensor]


def noise(name: str, *numbers: int) -> torch.Tensor:
    seed = hash((sorted(SHAPES).index(name), *numbers))
    return torch.randn(SHAPES[name], generator=torch.Generator().manual_seed(abs(seed) % 2**31))


def weights(dtype: torch.dtype = torch.float32) -> dict[str, Parameter]:
    return {name: Parameter((0.02 * noise(name)).to(dtype)) for name in SHAPES}


def selected() -> Tensors:
    """About a fifth of the entries, the first and the last among them; none of `untouched`."""
    found = {}
    for name in SHAPES:
        mask = noise(name, 99).flatten() > 0.84
        mask[0] = mask[-1] = True
        found[name] = mask.nonzero().squeeze(1) if name != "untouched" else torch.empty(0, dtype=torch.int64)
    return found


def backward(parameters: Mapping[str, Parameter], step: int, part: int) -> None:
    """A loss whose gradient is noise, exactly."""
    total = [(value.float() * noise(name, step, part)).sum() for name, value in parameters.items()]
    torch.stack(total).sum().backward()


def run_sparse(steps: range, parts: int, optimizer: SparseAdamW, parameters: Mapping[str, Parameter]) -> None:
    for step in steps:
        for part in range(parts):
            backward(parameters, step, part)
        optimizer.step()
        parameters["untouched"].grad = None


def run_dense(parts: int, parameters: Mapping[str, Parameter], **options: Any) -> None:
    chosen = selected()
    others = {name: torch.ones(value.numel(), dtype=torch.bool) for name, value in parameters.items()}
    for name, index in chosen.items():
        others[name][index] = False
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), **options)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(parts):
            backward(parameters, step, part)
        optimizer.step()
        with torch.no_grad():
            for name, value in parameters.items():
                value.view(-1)[others[name]] = before[name].view(-1)[others[name]]


def plain(parameters: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: value.detach().clone() for name, value in parameters.items()}


class TestEqualsDense:
    @pytest.mark.parametrize("foreach", [True, False])
    @pytest.mark.parametrize("parts", [1, 4])
    @pytest.mark.parametrize("weight_decay", [0.0, 0.01])
    def test_bit_for_bit(self, weight_decay: float, parts: int, foreach: bool) -> None:
        options = {"lr": 1e-2, "weight_decay": weight_decay, "foreach": foreach}
        dense, sparse = weights(), weights()
        run_dense(parts, dense, **options)
        with SparseAdamW(sparse, selected(), **options) as optimizer:
            run_sparse(range(STEPS), parts, optimizer, sparse)
        assert same_bits(plain(sparse), plain(dense))
        changed = {name: (plain(sparse)[name] != plain(weights())[name]).flatten() for name in SHAPES}
        assert {name: places.nonzero().squeeze(1).tolist() for name, places in changed.items()} == {
            name: index.tolist() for name, index in selected().items()
        }

    def test_with_the_gradient_scaled(self) -> None:
        dense, sparse = weights(), weights()
        reference = torch.optim.AdamW(dense.values(), lr=1e-2, weight_decay=0)
        with SparseAdamW(sparse, selected(), lr=1e-2) as optimizer:
            for step, scale in enumerate((0.3, 1.0, 0.07)):
                reference.zero_grad()
                backward(dense, step, 0)
                backward(sparse, step, 0)
                for value in dense.values():
                    assert value.grad is not None
                    value.grad.mul_(scale)
                reference.step()
                optimizer.step(scale)
        for name, index in selected().items():
            assert torch.equal(sparse[name].view(-1)[index], dense[name].view(-1)[index])

    def test_learning_rate_can_change(self) -> None:
        dense, sparse = weights(), weights()
        reference = torch.optim.AdamW(dense.values(), lr=1e-2, weight_decay=0)
        with SparseAdamW(sparse, selected(), lr=1.0) as optimizer:
            for step, rate in enumerate((1e-2, 3e-3)):
                reference.zero_grad()
                backward(dense, step, 0)
                backward(sparse, step, 0)
                reference.param_groups[0]["lr"] = rate
                optimizer.set_lr(rate)
                reference.step()
                optimizer.step()
        for name, index in selected().items():
            assert torch.equal(sparse[name].view(-1)[index], dense[name].view(-1)[index])


class TestMasters:
    def test_weights_are_the_rounded_masters(self) -> None:
        """Small steps in bfloat16: steps made on the rounded weights would mostly be lost."""
        rate = 1e-5
        sparse = weights(torch.bfloat16)
        exact = {name: Parameter(value.detach().float()) for name, value in sparse.items()}
        rounded = weights(torch.bfloat16)
        reference = torch.optim.AdamW(exact.values(), lr=rate, weight_decay=0)
        lossy = torch.optim.AdamW(rounded.values(), lr=rate, weight_decay=0)
        with SparseAdamW(sparse, selected(), lr=rate) as optimizer:
            for step in range(STEPS):
                reference.zero_grad()
                lossy.zero_grad()
                backward(sparse, step, 0)
                backward(rounded, step, 0)
                for name, value in exact.items():
                    value.grad = noise(name, step, 0).bfloat16().float()  # a bfloat16 weight has such a gradient
                reference.step()
                lossy.step()
                optimizer.step()
        found, lost = [], []
        for name, index in selected().items():
            expected = exact[name].detach().view(-1)[index].bfloat16()
            found.append(torch.equal(sparse[name].view(-1)[index], expected))
            lost.append(torch.equal(rounded[name].view(-1)[index], expected))
            if name in optimizer.masters:
                assert torch.equal(optimizer.masters[name], exact[name].view(-1)[index])
        assert all(found)
        assert not all(lost)

    def test_gradients_of_micro_batches_are_added_in_fp32(self) -> None:
        parameter = Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
        with SparseAdamW({"w": parameter}, {"w": torch.tensor([3])}, lr=1.0) as optimizer:
            for value in (256.0, 1.0):
                (parameter * value).sum().backward()
            assert optimizer.gradient_norm() == 257  # 256 in bfloat16


class TestState:
    def test_bytes_at_one_percent(self) -> None:
        parameter = Parameter(torch.zeros(576, 1536))
        count = parameter.numel() // 100
        with SparseAdamW({"w": parameter}, {"w": torch.arange(count) * 100}, lr=1e-3) as optimizer:
            parameter.sum().backward()
            assert parameter.grad is None
            optimizer.step()
            assert optimizer.entries == count
            assert optimizer.state_bytes == BYTES_PER_ENTRY * count
            assert optimizer.state_bytes <= 0.03 * 3 * 4 * parameter.numel()

    def test_saved_and_loaded_it_continues_with_the_same_bits(self, tmp_path: Path) -> None:
        options = {"lr": 1e-2, "weight_decay": 0.01}
        undisturbed = weights()
        with SparseAdamW(undisturbed, selected(), **options) as optimizer:
            run_sparse(range(STEPS), 1, optimizer, undisturbed)
        first = weights()
        with SparseAdamW(first, selected(), **options) as optimizer:
            run_sparse(range(7), 1, optimizer, first)
            save_file(optimizer.state_tensors(), tmp_path / "state")
        second = weights()
        with SparseAdamW(second, selected(), **options) as optimizer:
            optimizer.load_state_tensors(load_file(tmp_path / "state"))
            assert same_bits(plain(second), plain(first))
            run_sparse(range(7, STEPS), 1, optimizer, second)
        assert same_bits(plain(second), plain(undisturbed))

    def test_before_the_first_step(self) -> None:
        sparse = weights()
        with SparseAdamW(sparse, selected(), lr=1e-2) as optimizer:
            state = optimizer.state_tensors()
            assert sorted(state) == [f"{name}.master" for name in ("experts", "odd", "single", "wide")]
            optimizer.load_state_tensors(state)
        assert same_bits(plain(sparse), plain(weights()))


class TestWeights:
    def test_current_and_write(self) -> None:
        sparse = weights()
        with SparseAdamW(sparse, selected(), lr=1e-2) as optimizer:
            original = optimizer.current()
            run_sparse(range(2), 1, optimizer, sparse)
            for name, value in optimizer.current().items():
                assert not torch.equal(value, original[name])
                assert torch.equal(value, optimizer.masters[name])
            optimizer.write(original)
        assert same_bits(plain(sparse), plain(weights()))

    def test_hooks_end_with_the_block(self) -> None:
        sparse = weights()
        with SparseAdamW(sparse, selected(), lr=1e-2):
            backward(sparse, 0, 0)
            assert [name for name, value in sparse.items() if value.grad is not None] == ["untouched"]
        backward(sparse, 0, 0)
        assert all(value.grad is not None for value in sparse.values())


class TestErrors:
    @pytest.mark.parametrize("indices", [{}, {"odd": torch.empty(0, dtype=torch.int32)}], ids=["nothing", "empty"])
    def test_no_weight(self, indices: Tensors) -> None:
        with pytest.raises(RegionError, match="selects no weight"):
            SparseAdamW(weights(), indices, lr=1e-2)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_gradient_that_is_not_finite(self, bad: float) -> None:
        sparse = weights()
        with SparseAdamW(sparse, selected(), lr=1e-2) as optimizer:
            (sparse["odd"] * bad).sum().backward()
            with pytest.raises(NumericalError, match="not finite"):
                optimizer.gradient_norm()

    def test_norm(self) -> None:
        sparse = weights()
        with SparseAdamW(sparse, selected(), lr=1e-2) as optimizer:
            backward(sparse, 0, 0)
            together = torch.cat([noise(name, 0, 0).flatten()[index] for name, index in selected().items()])
            assert optimizer.gradient_norm() == pytest.approx(float(together.norm()), rel=1e-6)

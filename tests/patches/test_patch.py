"""Patches on tiny random models: exact both ways, and refused where they do not belong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from ballast.errors import PatchError
from ballast.models.fingerprint import fingerprints
from ballast.patches import Patch
from tests.patches.world import ORIGIN, changed_copy, patch_of
from tests.zoo import tiny

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"

torch.set_num_threads(1)


def entries(model: PreTrainedModel, name: str = DOWN, at: tuple[int, ...] = (0, 3, 7)) -> tuple[torch.Tensor, ...]:
    indices = torch.tensor(at, dtype=torch.int64)
    previous = dict(model.named_parameters())[name].detach().reshape(-1)[indices].clone()
    return indices, previous + 1, previous


class TestExact:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "qwen3_moe"])
    def test_apply_then_revert(self, name: str, dtype: torch.dtype, tmp_path: Path) -> None:
        patch = patch_of(name, dtype)
        patch.save(tmp_path / "patch.safetensors")
        loaded = Patch.load(tmp_path / "patch.safetensors")
        model = tiny(name, dtype=dtype)
        original = fingerprints(model)
        loaded.apply(model)
        assert fingerprints(model) == fingerprints(changed_copy(name, dtype))
        loaded.revert(model)
        assert fingerprints(model) == original

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0), st.sampled_from(DTYPES))
    def test_any_bits_survive(self, seed: int, share: float, dtype: torch.dtype) -> None:
        """Negative zeros, infinities and NaNs of the base come back with the same bits."""
        generator = torch.Generator().manual_seed(seed)
        model = torch.nn.Linear(7, 5, dtype=dtype)
        odd = torch.tensor([-0.0, 0.0, float("nan"), float("inf"), 1e-40], dtype=dtype)
        with torch.no_grad():
            model.weight.copy_(odd[torch.randint(5, (5, 7), generator=generator)])
        other = torch.nn.Linear(7, 5, dtype=dtype)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            chosen = torch.rand(5, 7, generator=generator) < share
            chosen[0, 0] = True
            other.weight[chosen] = torch.rand(int(chosen.sum()), generator=generator).to(dtype) + 1
        patch = Patch.between(model, other, base=ORIGIN)
        assert patch.info().entries == int(chosen.sum())
        before = model.weight.detach().clone()
        patch.apply(model)
        assert torch.equal(model.weight.view(torch.uint8), other.weight.view(torch.uint8))
        patch.revert(model)
        assert torch.equal(model.weight.view(torch.uint8), before.view(torch.uint8))

    def test_negative_zero_is_a_change(self) -> None:
        model, other = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(model.weight, 0.0)
        torch.nn.init.constant_(other.weight, -0.0)
        assert Patch.between(model, other, base=ORIGIN).info().entries == 1

    def test_tied_weight_is_patched_once(self) -> None:
        model = tiny("qwen2")
        assert model.lm_head.weight is model.model.embed_tokens.weight
        patch = patch_of("qwen2")
        assert "lm_head.weight" not in patch.entries
        patch.apply(model)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, changed_copy("qwen2", torch.float32).lm_head.weight)

    def test_weights_that_are_not_contiguous(self) -> None:
        """Indices count in row-major order of the shape, whatever the memory looks like."""
        plain = torch.nn.Linear(4, 3, bias=False)
        turned = torch.nn.Linear(4, 3, bias=False)
        turned.weight = torch.nn.Parameter(plain.weight.detach().t().contiguous().t())
        assert not turned.weight.is_contiguous()
        patch = Patch.from_values({"weight": entries(plain, "weight", (1, 6))}, plain, base=ORIGIN)
        patch.apply(plain)
        patch.apply(turned)
        assert torch.equal(plain.weight, turned.weight)
        patch.revert(turned)
        assert not torch.equal(plain.weight, turned.weight)

    def test_applied_puts_back(self) -> None:
        model, patch = tiny("llama"), patch_of()
        original = fingerprints(model)
        with suppress(KeyError), patch.applied(model):
            assert fingerprints(model) != original
            raise KeyError
        assert fingerprints(model) == original
        patch.apply(model)
        with patch.applied(model):
            pass
        assert fingerprints(model) != original


class TestFromValues:
    @pytest.mark.parametrize("written", ["previous", "values", "other"])
    def test_state_of_the_listed_entries_does_not_matter(self, written: str) -> None:
        model = tiny("llama")
        indices, values, previous = entries(model)
        content = {"previous": previous, "values": values, "other": values * 7}[written]
        with torch.no_grad():
            model.get_parameter(DOWN).view(-1)[indices] = content
        patch = Patch.from_values({DOWN: (indices, values, previous)}, model, base=ORIGIN, settings={"a": [1]})
        fresh = tiny("llama")
        patch.apply(fresh)
        assert torch.equal(fresh.get_parameter(DOWN).detach().view(-1)[indices], values)
        assert patch.header.settings == {"a": [1]}

    def test_info(self) -> None:
        model = tiny("llama", dtype=torch.bfloat16)
        changes = {DOWN: entries(model), NORM: entries(model, NORM, (5,)), "lm_head.weight": entries(model, at=())}
        info = Patch.from_values(changes, model, base=ORIGIN).info()
        total = sum(parameter.numel() for parameter in model.parameters())
        assert (info.entries, info.tensors, info.parameters) == (4, 2, total)
        assert info.bytes == 4 * (4 + 2 + 2)
        assert info.share == 4 / total
        assert info.base == ORIGIN

    @pytest.mark.parametrize(
        ("indices", "values", "message"),
        [
            ([3, 1], [1.0, 2.0], "not sorted"),
            ([3, 3], [1.0, 2.0], "not sorted or are repeated"),
            ([-1, 3], [1.0, 2.0], "outside its 1536"),
            ([0, 1536], [1.0, 2.0], "outside its 1536"),
            ([0, 2**32 + 1], [1.0, 2.0], "outside its 1536"),
            ([0, 1], [1.0, float("nan")], "not finite"),
            ([0, 1], [float("-inf"), 1.0], "not finite"),
            ([0, 1], [1.0], "unequal length"),
        ],
    )
    def test_invalid_entries(self, indices: list[int], values: list[float], message: str) -> None:
        changes = {DOWN: (torch.tensor(indices), torch.tensor(values), torch.zeros(len(indices)))}
        with pytest.raises(PatchError, match=message):
            Patch.from_values(changes, tiny("llama"), base=ORIGIN)

    def test_wrong_dtype_and_name(self) -> None:
        change = (torch.tensor([0]), torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16))
        with pytest.raises(PatchError, match=r"must have int32 indices and torch\.float32"):
            Patch.from_values({DOWN: change}, tiny("llama"), base=ORIGIN)
        with pytest.raises(PatchError, match="no tensor nowhere"):
            Patch.from_values({"nowhere": change}, tiny("llama"), base=ORIGIN)

    def test_nothing_changed(self) -> None:
        with pytest.raises(PatchError, match="no changed entry"):
            Patch.from_values({}, tiny("llama"), base=ORIGIN)
        with pytest.raises(PatchError, match="same weights"):
            Patch.between(tiny("llama"), tiny("llama"), base=ORIGIN)

    def test_between_needs_one_architecture(self) -> None:
        with pytest.raises(PatchError, match="Only one of the two models has"):
            Patch.between(tiny("llama"), tiny("gpt2"), base=ORIGIN)
        with pytest.raises(PatchError, match="equal shapes and dtypes"):
            Patch.between(tiny("llama"), tiny("llama", dtype=torch.bfloat16), base=ORIGIN)


class TestWrongModel:
    def refused(self, model: PreTrainedModel, message: str, patch: Patch | None = None, verb: str = "apply") -> None:
        """Refused, and no bit of the model was touched."""
        before = fingerprints(model)
        with pytest.raises(PatchError, match=message):
            getattr(patch or patch_of(), verb)(model)
        assert fingerprints(model) == before

    def test_other_weights(self) -> None:
        self.refused(tiny("llama", seed=9), "not that of owner/tiny")

    def test_one_other_tensor_late_in_the_model(self) -> None:
        model = tiny("llama")
        with torch.no_grad():
            model.lm_head.weight[-1, -1] += 1
        self.refused(model, "lm_head.weight of this model is not that")

    def test_other_dtype(self) -> None:
        self.refused(tiny("llama", dtype=torch.bfloat16), r"bfloat16 .* but the patch is for float32")

    def test_other_architecture(self) -> None:
        self.refused(tiny("gpt2"), "has no tensor")

    def test_twice(self) -> None:
        model, patch = tiny("llama"), patch_of()
        patch.apply(model)
        self.refused(model, "already applied", patch)

    def test_revert_without_apply(self) -> None:
        self.refused(tiny("llama"), "not applied", verb="revert")

    def test_half_applied(self) -> None:
        model, changed = tiny("llama"), changed_copy("llama", torch.float32)
        model.lm_head.weight.data.copy_(changed.lm_head.weight.data)
        self.refused(model, "not that of owner/tiny")
        self.refused(model, "not that of owner/tiny", verb="revert")

    def test_changed_after_applying(self) -> None:
        model, patch = tiny("llama"), patch_of()
        patch.apply(model)
        model.get_parameter(DOWN).data[0, 0] += 1
        self.refused(model, "without other changes", patch, verb="revert")

    def test_untouched_tensors_may_differ(self) -> None:
        model = tiny("llama")
        patch = Patch.from_values({DOWN: entries(model)}, model, base=ORIGIN)
        model.lm_head.weight.data.zero_()
        patch.apply(model)
        patch.revert(model)


class TestDiff:
    def test_hand_counts(self) -> None:
        model = tiny("llama")
        indices, values, previous = entries(model, at=(0, 3, 7))
        first = Patch.from_values({DOWN: (indices, values, previous)}, model, base=ORIGIN)
        other = entries(model, at=(3, 7, 8, 9))
        moved = other[1].clone()
        moved[0] += 1
        changes = {DOWN: (other[0], moved, other[2]), NORM: entries(model, NORM, (5,))}
        second = Patch.from_values(changes, model, base=ORIGIN)
        found = first.diff(second)
        assert (found.shared, found.same, found.different) == (2, 1, 1)
        assert (found.only_first, found.only_second, found.same_base) == (1, 3, True)
        swapped = second.diff(first)
        assert (swapped.shared, swapped.only_first, swapped.only_second) == (2, 3, 1)

    def test_other_base(self) -> None:
        first, other = tiny("llama"), tiny("llama", seed=4)
        patches = [Patch.from_values({DOWN: entries(model)}, model, base=ORIGIN) for model in (first, other)]
        assert not patches[0].diff(patches[1]).same_base

    def test_with_itself(self) -> None:
        patch = patch_of()
        found = patch.diff(patch)
        assert found.same == found.shared == patch.info().entries
        assert found.only_first == found.only_second == found.different == 0

"""Several patches as one: the same bits as applying them in order, and every conflict counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ballast.errors import ModelError, PatchError, UsageError
from ballast.models.fingerprint import fingerprints
from ballast.patches import Conflict, Entries, Patch, stack
from ballast.patches.stack import OnConflict
from tests.patches.world import ORIGIN, changed_copy, patch_of
from tests.zoo import tiny, tiny_on_meta

torch.set_num_threads(1)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def layer(values: Sequence[float], dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    model = torch.nn.Linear(len(values), 1, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([list(values)]))
    return model


def listed(model: torch.nn.Linear) -> list[float]:
    found: list[float] = model.weight.detach().flatten().tolist()
    return found


def side_by_side(base: Sequence[float], *changed: Sequence[float], dtype: torch.dtype = torch.float32) -> list[Patch]:
    return [Patch.between(layer(base, dtype), layer(values, dtype), base=ORIGIN) for values in changed]


class TestInOrder:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_one_on_top_of_the_other(self, dtype: torch.dtype) -> None:
        """Three patches, each made for what the ones before it leave: no conflict, and the bits of applying them."""
        stages = [tiny("llama", dtype=dtype), *(changed_copy("llama", dtype, share=0.05, seed=seed) for seed in (1, 2))]
        stages.append(changed_copy("llama", dtype, share=0.5, seed=3))
        patches = [Patch.between(old, new, base=ORIGIN) for old, new in pairwise(stages)]
        model = tiny("llama", dtype=dtype)
        for patch in patches:
            patch.apply(model)
        made = stack(patches, tiny("llama", dtype=dtype))
        assert made.conflicts == {}
        other = tiny("llama", dtype=dtype)
        original = fingerprints(other)
        made.patch.apply(other)
        assert fingerprints(other) == fingerprints(model)
        made.patch.revert(other)
        assert fingerprints(other) == original

    @pytest.mark.parametrize("on_conflict", ["error", "last", "sum"])
    def test_different_tensors_of_one_base(self, on_conflict: OnConflict) -> None:
        whole = patch_of()
        half = len(whole.entries) // 2
        names = sorted(whole.entries)
        parts = []
        for chosen in (names[:half], names[half:]):
            changes = {name: (part.indices, part.values, part.previous) for name, part in whole.entries.items()}
            parts.append(Patch.from_values({name: changes[name] for name in chosen}, tiny("llama"), base=ORIGIN))
        one, other = tiny("llama"), tiny("llama")
        for part in parts:
            part.apply(one)
        made = stack(parts, tiny("llama"), on_conflict=on_conflict)
        made.patch.apply(other)
        assert made.conflicts == {}
        assert fingerprints(one) == fingerprints(other)

    def test_the_model_is_left_as_it_was(self) -> None:
        model = tiny("llama")
        before = fingerprints(model)
        stack([patch_of(), patch_of(seed=2)], model, on_conflict="sum")
        assert fingerprints(model) == before

    def test_an_entry_that_returns_to_the_base_is_no_change(self) -> None:
        model, moved = layer([1.0, 2.0]), layer([5.0, 6.0])
        there, back = Patch.between(model, moved, base=ORIGIN), Patch.between(moved, layer([1.0, 7.0]), base=ORIGIN)
        made = stack([there, back], model).patch
        assert made.entries["weight"].indices.tolist() == [1]
        with pytest.raises(PatchError, match="no changed entry"):
            stack([there, Patch.between(moved, model, base=ORIGIN)], model)


class TestConflicts:
    BASE = (1.0, 2.0, 3.0, 4.0, 5.0)
    FIRST = (1.5, 2.5, 3.5, 4.0, 5.0)  # sets entries 0, 1, 2
    SECOND = (1.0, 2.5, 2.0, 6.0, 5.0)  # sets entries 1 (alike), 2 (otherwise) and 3

    @pytest.mark.parametrize(
        ("on_conflict", "expected"),
        [("last", [1.5, 2.5, 2.0, 6.0, 5.0]), ("sum", [1.5, 3.0, 2.5, 6.0, 5.0])],
    )
    def test_by_hand(self, on_conflict: OnConflict, expected: list[float]) -> None:
        patches = side_by_side(self.BASE, self.FIRST, self.SECOND)
        made = stack(patches, layer(self.BASE), on_conflict=on_conflict)
        model = layer(self.BASE)
        made.patch.apply(model)
        assert listed(model) == expected
        assert made.conflicts == {"weight": Conflict(entries=1, share=1 / 4, largest=1.5)}
        assert patches[0].diff(patches[1]).conflicts == made.conflicts
        made.patch.revert(model)
        assert listed(model) == list(self.BASE)

    def test_refused_by_default(self) -> None:
        with pytest.raises(
            PatchError, match=r"set 1 entries of 1 tensors to different values, by up to 1\.5 in weight"
        ):
            stack(side_by_side(self.BASE, self.FIRST, self.SECOND), layer(self.BASE))

    def test_alike_is_no_conflict(self) -> None:
        made = stack(side_by_side(self.BASE, self.FIRST, [1.0, 2.5, 3.0, 6.0, 5.0]), layer(self.BASE))
        assert made.conflicts == {}
        assert made.patch.entries["weight"].values.tolist() == [1.5, 2.5, 3.5, 6.0]

    def test_three_disagree_about_one_entry(self) -> None:
        patches = side_by_side([0.0, 1.0], [1.0, 1.0], [3.0, 1.0], [-4.0, 2.0])
        made = stack(patches, layer([0.0, 1.0]), on_conflict="last")
        assert made.conflicts == {"weight": Conflict(entries=1, share=1 / 2, largest=7.0)}
        summed = stack(patches, layer([0.0, 1.0]), on_conflict="sum").patch
        assert summed.entries["weight"].indices.tolist() == [1]  # 0 + 1 + 3 - 4 is the base again

    def test_one_on_top_and_one_beside(self) -> None:
        """The second was made for what the first leaves; the third for the base."""
        base, one, two, three = layer([0.0, 0.0]), layer([1.0, 0.0]), layer([2.0, 2.0]), layer([0.0, 3.0])
        patches = [Patch.between(*pair, base=ORIGIN) for pair in ((base, one), (one, two), (base, three))]
        made = stack(patches, base, on_conflict="last")
        assert made.patch.entries["weight"].values.tolist() == [2.0, 3.0]
        assert made.conflicts == {"weight": Conflict(entries=1, share=1 / 2, largest=1.0)}

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), st.sampled_from(["last", "sum"]))
    def test_slow_twin(self, seed: int, dtype: torch.dtype, on_conflict: OnConflict) -> None:
        """The same entry by entry; sums in exact arithmetic up to one rounding per patch."""
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(12, generator=generator).to(dtype)
        patches, expected = [], start.clone()
        was_set: set[int] = set()
        for _ in range(3):
            chosen = torch.rand(12, generator=generator) < 0.4
            chosen[int(torch.randint(12, (1,), generator=generator))] = True
            index = chosen.nonzero().flatten()
            values = torch.randn(len(index), generator=generator).to(dtype)
            base = layer(start.tolist(), dtype)
            patches.append(Patch.from_values({"weight": (index, values, start[index])}, base, base=ORIGIN))
            for place, value in zip(index.tolist(), values, strict=True):
                if on_conflict == "sum" and place in was_set:
                    value = (float(expected[place]) + float(value) - float(start[place])) * torch.ones(1).double()
                    value = value.to(dtype)[0]
                expected[place] = value
                was_set.add(place)
        model = layer(start.tolist(), dtype)
        stack(patches, model, on_conflict=on_conflict).patch.apply(model)
        assert torch.equal(model.weight.detach().flatten(), expected)


class TestRefused:
    def test_another_model(self) -> None:
        with pytest.raises(PatchError, match="made for other values of"):
            stack([patch_of(), patch_of(seed=2)], tiny("llama", seed=5), on_conflict="last")
        with pytest.raises(PatchError, match="no tensor"):
            stack([patch_of(), patch_of(seed=2)], tiny("gpt2"))
        with pytest.raises(PatchError, match="but the patch is for float32"):
            stack([patch_of(), patch_of(seed=2)], tiny("llama", dtype=torch.bfloat16))

    def test_patches_of_different_bases(self) -> None:
        here, there = layer([1.0, 2.0]), layer([8.0, 9.0])
        patches = [Patch.between(model, layer([0.0, 0.0]), base=ORIGIN) for model in (here, there)]
        with pytest.raises(PatchError, match="made for other values of weight"):
            stack(patches, here)

    def test_wrong_order(self) -> None:
        base, one, two = layer([0.0]), layer([1.0]), layer([2.0])
        with pytest.raises(PatchError, match="in the order in which they were made"):
            stack([Patch.between(one, two, base=ORIGIN), Patch.between(base, one, base=ORIGIN)], base)

    def test_altered_values(self) -> None:
        good = patch_of()
        name, part = next(iter(good.entries.items()))
        entries = {**good.entries, name: Entries(part.indices, part.values + 1, part.previous)}
        altered = dataclasses.replace(good, entries=entries)
        for patches in ([altered, good], [good, altered]):
            with pytest.raises(PatchError, match=r"does not make .* what it promises"):
                stack(patches, tiny("llama"), on_conflict="last")

    def test_bad_arguments(self) -> None:
        with pytest.raises(UsageError, match="at least two"):
            stack([patch_of()], tiny("llama"))
        unknown: Any = "first"
        with pytest.raises(UsageError, match="use error, last or sum"):
            stack([patch_of(), patch_of()], tiny("llama"), on_conflict=unknown)

    def test_weights_that_are_not_in_memory(self) -> None:
        with pytest.raises(ModelError, match="not in memory"):
            stack([patch_of(), patch_of(seed=2)], tiny_on_meta("llama"))

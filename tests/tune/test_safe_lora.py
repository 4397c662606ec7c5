"""Safe LoRA's projection while merging, against whole matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ballast.errors import ModelError, UsageError
from ballast.locate.checkpoints.adapter import read_adapter
from ballast.locate.checkpoints.directions import matrices_of
from ballast.locate.engine import eligible_parameters
from ballast.models import LanguageModel
from ballast.tune import merge_projected
from ballast.tune.merge import merge_adapter
from tests.locate.adapters import adapted
from tests.worlds import tiny_lm

torch.set_num_threads(1)

STILL = "layers.0.self_attn.v_proj.weight"


@pytest.fixture
def base(tmp_path: Path) -> str:
    """The checkpoint that alignment started from; one matrix is that of the aligned model."""
    lm, aligned = tiny_lm(seed=1), tiny_lm()
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if name.endswith(STILL):
                parameter.copy_(aligned.model.get_parameter(name))
    folder = tmp_path / "base"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


def weights(lm: LanguageModel) -> dict[tuple[str, int | None], torch.Tensor]:
    return {matrix: value.clone() for matrix, value in matrices_of(lm, eligible_parameters(lm)).items()}


def between(lm: LanguageModel, base: str, adapter: Path) -> float:
    """A threshold in the middle of the cosines, and of none of them."""
    values = sorted(cosine for _, _, cosine in expected_updates(lm, base, adapter) if cosine is not None)
    return sum(values[len(values) // 2 :][:2]) / 2


def expected_updates(
    lm: LanguageModel, base: str, adapter: Path
) -> list[tuple[torch.Tensor, torch.Tensor, float | None]]:
    """Of each module the update, the projected update and their cosine, by whole matrices."""
    before = weights(LanguageModel(type(lm.model).from_pretrained(base), lm.tokenizer, base))
    found = []
    for matrix, factors in read_adapter(lm, adapter).factors.items():
        changed = (weights(lm)[matrix] - before[matrix]).double()
        update = (factors.left @ factors.right).double()
        projected = changed @ changed.T @ update / torch.linalg.matrix_norm(changed)
        cosine = torch.nn.functional.cosine_similarity(projected.flatten(), update.flatten(), dim=0)
        found.append((update, projected, float(cosine) if changed.any() else None))
    return found


def test_what_leaves_alignment_is_projected(base: str, tmp_path: Path) -> None:
    lm = tiny_lm()
    adapted(lm, tmp_path / "adapter")
    threshold = between(lm, base, tmp_path / "adapter")
    expected = expected_updates(lm, base, tmp_path / "adapter")
    before = weights(lm)
    counts = merge_projected(lm, tmp_path / "adapter", base, threshold=threshold)
    after = weights(lm)
    projected = 0
    for matrix, (update, inside, cosine) in zip(read_adapter(lm, tmp_path / "adapter").factors, expected, strict=True):
        leaves = cosine is not None and cosine <= threshold
        projected += leaves
        wanted = before[matrix].double() + (inside if leaves else update)
        torch.testing.assert_close(after[matrix].double(), wanted, rtol=1e-4, atol=1e-5)
    assert 0 < projected < len(expected)
    assert (counts.modules, counts.projected, counts.undefined) == (len(expected), projected, 1)


def test_a_threshold_that_nothing_is_below_merges_as_it_is(base: str, tmp_path: Path) -> None:
    lm, plain = tiny_lm(), tiny_lm()
    adapted(lm, tmp_path / "adapter")
    assert merge_projected(lm, tmp_path / "adapter", base, threshold=0.0).projected == 0
    merge_adapter(plain, tmp_path / "adapter")
    assert all(torch.equal(value, weights(plain)[matrix]) for matrix, value in weights(lm).items())


def test_what_cannot_be_done(base: str, tmp_path: Path) -> None:
    lm = tiny_lm()
    adapted(lm, tmp_path / "adapter")
    with pytest.raises(UsageError, match=r"a cosine in \[0, 1\]"):
        merge_projected(lm, tmp_path / "adapter", base, threshold=1.5)
    lm.model.save_pretrained(tmp_path / "same")
    lm.tokenizer.save_pretrained(tmp_path / "same")
    with pytest.raises(ModelError, match=r"No weight of .* differs"):
        merge_projected(lm, tmp_path / "adapter", str(tmp_path / "same"))

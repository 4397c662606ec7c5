"""What two checkpoints differ by, and what is said if they do not fit each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ballast.errors import ModelError, UsageError
from ballast.locate import locate
from ballast.locate.checkpoints.base_checkpoint import difference, open_base
from ballast.locate.delta import Delta
from ballast.models import LanguageModel
from tests.worlds import prompt_set, tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)

PROMPTS = prompt_set("harmful", ["How?"])
UP = "model.layers.1.mlp.up_proj.weight"


def saved(lm: LanguageModel, folder: Path) -> str:
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return str(folder)


def test_by_hand(tmp_path: Path) -> None:
    base = saved(tiny_lm(), tmp_path)
    lm = tiny_lm()
    weight = lm.model.get_parameter(UP)
    before = weight[3, 5].item(), weight[0, 1].item()
    with torch.no_grad():
        weight[3, 5], weight[0, 1] = before[0] - 2, before[1] + 0.5
        lm.model.get_parameter("model.norm.weight").add_(1)  # is not scored
    scores = locate(lm, PROMPTS, "delta", base=base)
    found = {
        (name, *place): value[tuple(place)].item()
        for name, value in scores.values.items()
        for place in value.nonzero().tolist()
    }
    assert found == {(UP, 3, 5): pytest.approx(2), (UP, 0, 1): pytest.approx(0.5)}
    assert scores.settings["base"] == base
    assert scores.settings["unchanged"] == {
        "query": 2,
        "key": 2,
        "value": 2,
        "output": 2,
        "gate": 2,
        "up": 1,
        "down": 2,
    }
    recorded = scores.select(0.0001).metadata.settings["base_model"]
    assert recorded == tiny_lm().identity() | {"source": base, "name": tmp_path.name}
    assert scores.select(1 / 12000).indices[UP].tolist() == [3 * 32 + 5]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_checkpoints_of_every_architecture(architecture: str, tmp_path: Path) -> None:
    """Read back from files, a base is what it was; so the difference is that of the models in memory."""
    lm, other = tiny_lm(architecture), tiny_lm(architecture, seed=1)
    scores = locate(lm, PROMPTS, "delta", base=saved(other, tmp_path)).values
    for name, value in scores.items():
        assert torch.equal(value, (lm.model.get_parameter(name) - other.model.get_parameter(name)).abs()), name


def test_dtypes_may_differ(tmp_path: Path) -> None:
    """The difference of rounded weights is exact in fp32."""
    base = open_base(tiny_lm(), saved(tiny_lm(dtype=torch.bfloat16), tmp_path))
    lm = tiny_lm()
    exact = lm.model.get_parameter(UP).double() - base.model.get_parameter(UP).double()
    assert torch.equal(difference(lm, base)[UP].double(), exact.float().double())
    assert exact.any()


class TestRefused:
    def test_no_base(self) -> None:
        with pytest.raises(UsageError, match="give it as the setting base"):
            Delta()

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="is not a model folder"):
            locate(tiny_lm(), PROMPTS, "delta", base=str(tmp_path / "missing"))

    def test_other_names(self, tmp_path: Path) -> None:
        base = saved(tiny_lm("phi3"), tmp_path)
        with pytest.raises(ModelError, match=r"Only llama has model.layers.0.mlp.gate_proj.weight; give as base"):
            locate(tiny_lm(), PROMPTS, "delta", base=base)

    def test_more_layers(self, tmp_path: Path) -> None:
        base = tiny_lm()
        base.model.config.num_hidden_layers = 1
        base.model.model.layers = base.model.model.layers[:1]
        with pytest.raises(ModelError, match=r"Only llama has model.layers.1.mlp.down_proj.weight; give as base"):
            open_base(tiny_lm(), saved(base, tmp_path))

    def test_other_shapes(self, tmp_path: Path) -> None:
        base = saved(tiny_lm("qwen3"), tmp_path)
        with pytest.raises(
            ModelError, match=r"q_proj.weight is \(32, 32\) in llama and \(64, 32\) in .*; give as base"
        ):
            locate(tiny_lm(), PROMPTS, "delta", base=base)

    def test_the_same_weights(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="No weight of llama differs from what it is compared with"):
            locate(tiny_lm(), PROMPTS, "delta", base=saved(tiny_lm(), tmp_path))

"""Quantised weights: listed where others can be scored, refused in one sentence where none can."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from ballast import locate, open_model
from ballast.cli import main
from ballast.errors import ModelError
from ballast.locate import WeightScores
from ballast.models import LanguageModel
from ballast.models.parts import part_map
from tests.e2e.world import left_behind, make_checkpoint, make_prompts
from tests.worlds import REFUSALS, REQUESTS, assert_close, prompt_set
from tests.zoo import tiny, tiny_tokenizer

UP = "model.layers.0.mlp.up_proj.weight"


class ByteLinear(nn.Linear):
    """Rows of bytes with a scale each, as in LLM.int8."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.scale = nn.Buffer(linear.weight.detach().abs().amax(dim=1, keepdim=True) / 127)
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return functional.linear(states, self.weight * self.scale)


class PackedLinear(nn.Module):
    """Eight numbers of four bits in an integer, in a buffer, as in GPTQ."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(linear.in_features // 8, linear.out_features, dtype=torch.int32))


class Opaque(torch.Tensor):
    """A tensor class of its own, as in torchao."""


def replaced(
    model: PreTrainedModel, kind: Callable[[nn.Linear], nn.Module], within: str = "model.layers."
) -> PreTrainedModel:
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in linears:
        if name.startswith(within):
            model.set_submodule(name, kind(linear))
    return model


def stored(linear: nn.Module, dtype: torch.dtype) -> nn.Linear:
    assert isinstance(linear, nn.Linear)
    linear.weight = nn.Parameter(linear.weight.to(dtype), requires_grad=False)
    return linear


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_quantised_matrix_is_listed_with_its_form(dtype: torch.dtype) -> None:
    model = tiny("llama")
    stored(model.get_submodule("model.layers.0.mlp.up_proj"), dtype)
    parts = part_map(model)
    part = parts.by_name(UP)
    form = str(dtype).removeprefix("torch.")
    assert (part.role, part.eligible, part.reason) == ("up", False, f"quantised, stored as {form}")
    assert len(parts.eligible()) == 13


def test_what_is_not_quantised_is_scored() -> None:
    """A gradient flows through the bytes; it is that of the model whose weights they stand for."""
    model = replaced(tiny("llama"), ByteLinear, "model.layers.1.mlp.")
    plain = tiny("llama")
    for name, module in model.named_modules():
        if isinstance(module, ByteLinear):
            plain.get_submodule(name).weight = nn.Parameter(module.weight * module.scale)
    prompts = prompt_set("bad", REQUESTS, REFUSALS)
    found, expected = (
        locate(LanguageModel(one, tiny_tokenizer(), source="tiny"), prompts, "gradient") for one in (model, plain)
    )
    assert isinstance(found, WeightScores)
    assert isinstance(expected, WeightScores)
    assert len(found.values) == 11
    assert_close(found.values, {name: expected.values[name] for name in found.values})
    rows = found.select(0.1).metadata.coverage.skipped
    assert [(row.role, row.reason) for row in rows if "quantised" in row.reason] == [
        (role, "quantised, stored as int8") for role in ("down", "gate", "up")
    ]


@pytest.mark.parametrize(
    ("kind", "form", "tensor"),
    [
        (ByteLinear, "int8", "weight"),
        (lambda linear: stored(linear, torch.float8_e4m3fn), "float8_e4m3fn", "weight"),
        (PackedLinear, "int32", "qweight"),
    ],
)
def test_nothing_left_to_score_is_refused(kind: Callable[[nn.Linear], nn.Module], form: str, tensor: str) -> None:
    with pytest.raises(ModelError) as caught:
        part_map(replaced(tiny("llama"), kind))
    named = ", ".join(f"model.layers.0.self_attn.{name}_proj.{tensor}" for name in "qkv")
    assert str(caught.value) == (
        f"LlamaForCausalLM has 14 quantised weight tensors (such as {named}; stored as {form}), which cannot be scored "
        "or tuned; give the unquantised checkpoint."
    )


def test_packed_matrices_are_refused_beside_plain_ones() -> None:
    """They are no parameters, so neither a list of parts nor a fingerprint would show them."""
    with pytest.raises(ModelError, match=r"has 3 quantised weight tensors \(such as model\.layers\.1\.mlp\.gate_proj"):
        part_map(replaced(tiny("llama"), PackedLinear, "model.layers.1.mlp."))


def test_tensors_of_a_class_of_their_own_are_refused() -> None:
    model = tiny("llama")
    linear: Any = model.get_submodule("model.layers.0.mlp.up_proj")
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Opaque), requires_grad=False)
    with pytest.raises(ModelError, match=rf"1 quantised weight tensors \(such as {UP}; stored as Opaque\)"):
        LanguageModel(model, tiny_tokenizer(), source="tiny")


def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, prompts = make_checkpoint(tmp_path / "tiny"), make_prompts(tmp_path / "bad.jsonl", "make", 2)

    def opening(*_: Any, **__: Any) -> LanguageModel:
        lm = open_model(checkpoint)
        return LanguageModel(replaced(lm.model, PackedLinear), lm.tokenizer, lm.source)

    monkeypatch.setattr("ballast.cli.options.open_model", opening)
    with pytest.raises(SystemExit) as stopped:
        main(["locate", str(checkpoint), "--prompts", str(prompts), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    assert "14 quantised weight tensors" in capsys.readouterr().err
    assert left_behind(tmp_path / "out") == {"run.json"}


def test_a_checkpoint_whose_quantisation_cannot_be_read_here(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"^Cannot open the model .*; give the unquantised checkpoint$"):
        open_model(folder)

"""Neurons and heads own the lines that the model itself uses for them, on every architecture."""

from __future__ import annotations

import pytest
import torch

from ballast.locate.inputs import Inputs, observed_inputs
from ballast.models.attention import Attention, observed_attention
from ballast.models.language_model import LanguageModel
from ballast.models.parts import PartMap
from ballast.models.units import KeyValueRule, UnitGroup, head_groups, key_value_groups, layer_groups, neuron_groups
from tests.zoo import ARCHITECTURES, tiny, tiny_tokenizer

torch.set_num_threads(1)

HEADLESS = ("deepseek_v3",)  # its heads come out of latent vectors
NORMED = ("qwen3", "gemma3", "olmo2", "qwen3_moe", "olmoe")  # a norm over the head, or all heads, mixes dimensions
ONE_TOKEN = {"input_ids": torch.tensor([[40]])}
LONG = {"input_ids": torch.randint(4, 200, (1, 24), generator=torch.Generator().manual_seed(1))}


def opened(name: str) -> LanguageModel:
    return LanguageModel(tiny(name), tiny_tokenizer(), name)


def disturb(lm: LanguageModel, group: UnitGroup, unit: int, skip: tuple[str, ...] = ()) -> None:
    """Change all weights of one unit, but not in parameters of the roles in `skip`."""
    parameters = dict(lm.model.named_parameters())
    with torch.no_grad():
        for name, entries in group.entries(torch.tensor([unit])).items():
            if not lm.parts.by_name(name).role.endswith(skip or ("nothing",)):
                flat = parameters[name].view(-1)
                flat[entries] = flat[entries] * 0.3 + 0.2


@torch.no_grad()
def attention(lm: LanguageModel, layer: int) -> Attention:
    seen: list[Attention] = []
    with observed_attention(lm, seen.append):
        lm.model(**ONE_TOKEN)
    return seen[layer]


@torch.no_grad()
def read_by(lm: LanguageModel, layer: int, role: str, expert: int | None) -> torch.Tensor:
    """What the matrix of this role reads, (N, in)."""
    seen: list[Inputs] = []
    with observed_inputs(lm, seen.append):
        lm.model(**LONG)
    wanted = [one for one in seen if (one.part.layer, one.part.role, one.expert) == (layer, role, expert)]
    return wanted[0].values


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in NORMED + HEADLESS])
@pytest.mark.parametrize("kind", ["query", "key", "value"])
def test_attention_rows(name: str, kind: str) -> None:
    """Disturbing a neuron's row changes its dimension of its head, at position 0 where nothing is rotated."""
    lm = opened(name)
    (group,) = [one for one in neuron_groups(lm, [kind])[0] if one.layer == 1]
    for unit in (0, 11, group.size - 1):
        lm = opened(name)
        before = getattr(attention(lm, 1), kind)[0, :, 0]
        disturb(lm, group, unit)
        changed = (getattr(attention(lm, 1), kind)[0, :, 0] - before).abs() > 1e-4
        assert changed.nonzero().tolist() == [list(divmod(unit, group.shape[1]))]


@pytest.mark.parametrize("name", [name for name in NORMED if name not in ("olmo2", "olmoe")])
def test_attention_rows_behind_a_norm_of_the_head(name: str) -> None:
    lm = opened(name)
    (group,) = [one for one in neuron_groups(lm, ["query"])[0] if one.layer == 1]
    before = attention(lm, 1).query[0, :, 0]
    disturb(lm, group, 19)
    changed = (attention(lm, 1).query[0, :, 0] - before).abs() > 1e-5
    assert changed.any(dim=1).nonzero().flatten().tolist() == [19 // group.shape[1]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_feed_forward_lines(name: str) -> None:
    """Disturbing gate and up of a neuron changes what `down` reads from it, and nothing else of that layer."""
    groups = [one for one in neuron_groups(opened(name), ["feed_forward"])[0] if one.layer == 1]
    assert groups
    for group in {one.kind: one for one in groups}.values():
        role = group.kind.replace("feed_forward", "down")
        unit = group.size - 3
        lm = opened(name)
        before = read_by(lm, 1, role, group.expert)
        disturb(lm, group, unit, skip=("down",))
        after = read_by(lm, 1, role, group.expert)
        assert ((after - before).abs() > 1e-6).any(dim=0).nonzero().flatten().tolist() == [unit]
        down = [one for one in group.lines if one.part.role == role]
        assert [one.positions[unit].tolist() for one in down] == [[unit]]
        assert not any(one.outputs for one in down)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_zeroing_the_output_columns_of_a_head_silences_it(name: str) -> None:
    """The output columns of `output` neurons are those that read the dimensions of the head, in order."""
    lm = opened(name)
    groups, _ = neuron_groups(lm, ["output"])
    (group,) = [one for one in groups if one.layer == 0]
    heads, size = group.shape
    assert heads == lm.model.config.get_text_config().num_attention_heads
    read = read_by(lm, 0, "output", None)
    seen: list[Attention] = []
    with observed_attention(lm, seen.append):
        lm.model(**LONG)
    one = seen[0]
    values = one.value.repeat_interleave(one.group, dim=1)
    keys = one.key.repeat_interleave(one.group, dim=1)
    mixed = one.probabilities(one.query @ keys.transpose(2, 3) * one.scaling) @ values  # (1, H, T, d)
    expected = mixed[0, :, :, :size].transpose(0, 1).flatten(1)
    torch.testing.assert_close(read[:, group.lines[0].positions.flatten()], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_heads_are_made_of_their_neurons(name: str) -> None:
    lm = opened(name)
    groups, missing = head_groups(lm, "never")
    if name in HEADLESS:
        assert not groups
        assert len(missing) == 3
        return
    neurons = {(one.kind, one.layer): one for one in neuron_groups(lm)[0]}
    for group in groups:
        for head in range(group.size):
            expected: dict[str, set[int]] = {}
            for kind in ("query", "output"):
                size = neurons[kind, group.layer].shape[1]
                units = torch.arange(head * size, (head + 1) * size)
                for parameter, entries in neurons[kind, group.layer].entries(units).items():
                    expected.setdefault(parameter, set()).update(entries.tolist())
            found = group.entries(torch.tensor([head]))
            assert {parameter: set(entries.tolist()) for parameter, entries in found.items()} == expected
    for group in key_value_groups(lm):
        together = {
            kind: neurons[kind, group.layer].entries(torch.arange(neurons[kind, group.layer].size))
            for kind in ("key", "value")
        }
        everything = group.entries(torch.arange(group.size))
        for parameter, entries in everything.items():
            parts = torch.cat([one[parameter] for one in together.values() if parameter in one])
            assert torch.equal(entries.sort().values, parts.sort().values)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in HEADLESS])
def test_key_and_value_rows_follow_their_query_heads(name: str) -> None:
    """Head 0 alone, the heads of a key head and all of them: which key and value neurons each rule adds."""
    lm = opened(name)
    config = lm.model.config.get_text_config()
    sharing = config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    neurons = {(one.kind, one.layer): one for one in neuron_groups(lm)[0]}
    whole: dict[KeyValueRule, tuple[int, int, int]] = {
        "all_selected": (0 if sharing > 1 else 1, 1, 2),
        "any": (1, 1, 2),
        "never": (0, 0, 0),
    }
    for rule, expected in whole.items():
        groups, _ = head_groups(lm, rule)
        bare, _ = head_groups(lm, "never")
        for chosen, count in zip((1, sharing, 2 * sharing), expected, strict=True):
            heads = torch.arange(chosen)
            added: set[tuple[str, int]] = set()
            for kind in ("key", "value"):
                group = neurons[kind, groups[1].layer]
                for parameter, entries in group.entries(torch.arange(count * group.shape[1])).items():
                    added |= {(parameter, entry) for entry in entries.tolist()}
            found, own = (
                {(parameter, entry) for parameter, entries in one.entries(heads).items() for entry in entries.tolist()}
                for one in (groups[1], bare[1])
            )
            assert found - own == added
            assert own <= found


def test_what_heads_use_together_is_touched_by_each_of_them() -> None:
    lm = opened("llama")
    (group, *_), _ = head_groups(lm)
    key = next(line for line in group.used if line.part.role == "key")
    mask = torch.zeros(key.part.shape, dtype=torch.bool)
    mask[-1, 3] = True  # a row of the last key head, which serves the last two query heads
    assert key.any_of(mask, None).tolist() == [False, False, True, True]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_weight_belongs_to_two_neurons(name: str) -> None:
    lm = opened(name)
    owned: dict[str, list[torch.Tensor]] = {}
    for group in neuron_groups(lm)[0]:
        for parameter, entries in group.entries(torch.arange(group.size)).items():
            owned.setdefault(parameter, []).append(entries)
    for parameter, pieces in owned.items():
        entries = torch.cat(pieces)
        assert len(entries) == len(entries.unique()) == lm.parts.by_name(parameter).numel
    everything = {part.name for part in lm.parts.eligible()}
    latent = {part.name for part in lm.parts.eligible() if part.role.startswith(("query_", "key_value_"))}
    assert everything - owned.keys() == latent


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_layer_owns_every_weight_of_its_block_once(name: str) -> None:
    lm = opened(name)
    groups, missing = layer_groups(lm)
    assert not missing
    assert [one.layer for one in groups] == list(range(lm.model.config.get_text_config().num_hidden_layers))
    for group in groups:
        assert (group.kind, group.expert, group.size) == ("layer", None, 1)
        parts = {part.name: part for part in lm.parts.eligible() if part.layer == group.layer}
        entries = group.entries(torch.arange(1))
        assert entries.keys() == parts.keys()
        for parameter, flat in entries.items():
            assert torch.equal(flat.sort().values, torch.arange(parts[parameter].numel))
        assert not group.entries(torch.arange(0))[next(iter(parts))].numel()


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_one_weight_of_a_layer_is_enough_to_touch_it(name: str) -> None:
    """Also in the last expert."""
    lm = opened(name)
    (line, *_) = [line for line in layer_groups(lm)[0][1].lines if line.part.role.endswith("down")]
    mask = torch.zeros(line.part.shape, dtype=torch.bool)
    assert line.any_of(mask, None).tolist() == [False]
    mask.view(-1)[-1] = True
    assert line.any_of(mask, None).tolist() == [True]


def test_a_block_without_projections_is_named() -> None:
    lm = opened("llama")
    lm.parts = PartMap([part for part in lm.parts if part.layer != 0])
    groups, missing = layer_groups(lm)
    assert [one.layer for one in groups] == [1]
    assert missing == ["layer 0: no projection is known"]

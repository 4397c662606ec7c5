"""Layers, matrices and neurons: numbers by hand, and neurons of every architecture by what they do to its output."""

from __future__ import annotations

import pytest
import torch

from ballast.errors import RegionError
from ballast.models import LanguageModel, Part
from ballast.regions.planted import neuron_group
from ballast.regions.units import units_of
from tests.regions.worlds import PARTS, SmallPart
from tests.worlds import tiny_lm
from tests.zoo import ARCHITECTURES

torch.set_num_threads(1)


def selected(**places: list[int]) -> dict[str, torch.Tensor]:
    return {name.replace("_", "."): torch.tensor(indices) for name, indices in places.items()}


class TestByHand:
    DENSE = (
        SmallPart("m.gate", 0, "gate", (3, 2)),
        SmallPart("m.up", 0, "up", (2, 3), "in_out"),
        SmallPart("m.down", 0, "down", (2, 3)),
        SmallPart("q", 0, "query", (2, 2)),
    )

    def test_layers(self) -> None:
        units = units_of(PARTS, "layer")
        assert units.count == 3  # 2, 10 and the head outside of the layers
        assert units.sizes().tolist() == [35 + 24 + 36 + 24, 24 + 60, 20]
        chosen = {"layers.2.query": torch.tensor([0, 34]), "layers.10.experts": torch.tensor([59])}
        assert units.counted(chosen).tolist() == [2, 1, 0]

    def test_matrices_are_one_per_expert(self) -> None:
        units = units_of(PARTS, "matrix")
        assert units.sizes().tolist() == [35, 24, 24, 20, 20, 20, 18, 18, 12, 12, 20]
        # (4, 3, 2) with experts along the last axis: even places are the first expert's
        assert units.counted({"layers.2.last": torch.tensor([0, 2, 3])}).tolist() == [0] * 8 + [2, 1, 0]

    def test_neurons_of_a_plain_network(self) -> None:
        """Neuron 1 is row 1 of gate, column 1 of up (stored in by out) and column 1 of down."""
        units = units_of(self.DENSE, "neuron")
        assert units.count == 3
        assert units.sizes().tolist() == [6, 6, 6]
        found = {name: places.tolist() for name, places in units.weights_of(torch.tensor([1]).numpy()).items()}
        assert found == {"m.gate": [2, 3], "m.up": [1, 4], "m.down": [1, 4]}
        assert units.counted(selected(m_gate=[0, 5], m_down=[3, 4], q=[0])).tolist() == [2, 1, 1]

    @pytest.mark.parametrize(
        ("halves", "rows"), [("contiguous", [1, 3]), ("interleaved", [2, 3])], ids=["contiguous", "interleaved"]
    )
    def test_neurons_of_fused_experts(self, halves: str, rows: list[int]) -> None:
        """Two experts of two neurons; neuron 3 is the second one of the second expert."""
        fused = SmallPart("e.gate_up", 0, "experts.gate_up", (2, 4, 3), "out_in", 0, halves)  # type: ignore[arg-type]
        down = SmallPart("e.down", 0, "experts.down", (2, 3, 2), "out_in", 0)
        units = units_of((fused, down), "neuron")
        assert units.count == 4
        found = {name: places.tolist() for name, places in units.weights_of(torch.tensor([3]).numpy()).items()}
        assert found == {
            "e.gate_up": [12 + 3 * row + column for row in rows for column in range(3)],
            "e.down": [6 + 2 * row + 1 for row in range(3)],
        }

    def test_networks_are_told_apart(self) -> None:
        other = tuple(SmallPart(part.name.replace("m", "n"), 1, part.role, part.shape) for part in self.DENSE[:1])
        assert units_of((*self.DENSE, *other), "neuron").count == 6

    def test_what_cannot_be_told_is_refused(self) -> None:
        with pytest.raises(RegionError, match=r"does not say how x\.gate_up orders gate and up"):
            units_of([SmallPart("x.gate_up", 0, "experts.gate_up", (2, 4, 3), "out_in", 0)], "neuron")
        with pytest.raises(RegionError, match="No parameter belongs to a neuron"):
            units_of(self.DENSE[3:], "neuron")


def last_layer(lm: LanguageModel) -> int:
    return max(part.layer for part in lm.parts.eligible() if part.layer is not None)


@torch.no_grad()
def output(lm: LanguageModel) -> torch.Tensor:
    logits: torch.Tensor = lm.model(input_ids=torch.arange(4, 40).view(2, 18)).logits
    return logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_neuron_computes_reaches_the_output_only_through_what_reads_it(architecture: str) -> None:
    """With the neurons' share of down set to zero, noise on their share of gate and up changes nothing."""
    lm = tiny_lm(architecture)
    planted = neuron_group(lm, 20, seed=1, layer=last_layer(lm))
    roles = {name: lm.parts.by_name(name).role.rpartition(".")[2] for name in planted.indices}
    before = output(lm)

    def change(name: str, noise: bool) -> None:
        values = lm.model.get_parameter(name).detach().view(-1)
        places = planted.indices[name].long()
        values[places] = torch.randn(len(places), generator=torch.Generator().manual_seed(0)) if noise else 0.0

    computing = [name for name, role in roles.items() if role != "down"]
    for name in computing:
        change(name, noise=True)
    assert not torch.allclose(output(lm), before, atol=1e-3)  # the noise is heard as long as down reads it
    for name in roles.keys() - set(computing):
        change(name, noise=False)
    silenced = output(lm)
    for name in computing:
        change(name, noise=False)
    torch.testing.assert_close(output(lm), silenced, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_neurons_share_out_all_feed_forward_weights(architecture: str) -> None:
    parts: list[Part] = list(tiny_lm(architecture).parts.eligible())
    feed_forward = [part for part in parts if part.role.rpartition(".")[2] in ("gate", "up", "gate_up", "down")]
    sizes = units_of(parts, "neuron").sizes()
    assert sizes.sum() == sum(part.numel for part in feed_forward)
    assert sizes.min() > 0

"""Other values in a region: which, where, and gone afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ballast import locate
from ballast.errors import ModelError, RegionError, UsageError
from ballast.models import LanguageModel
from ballast.models.fingerprint import fingerprints
from ballast.regions import Region, carried
from ballast.regions.disturbed import ablated, differing, disturbed, scaled, transplanted
from tests.worlds import prompt_set, tiny_lm

torch.set_num_threads(1)

Disturb = Callable[[LanguageModel, Region], AbstractContextManager[None]]
DISTURBANCES: dict[str, tuple[Disturb, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "ablate": (ablated, lambda own, _: torch.zeros_like(own)),
    "scale": (lambda lm, region: scaled(lm, region, 1.5), lambda own, _: (own.float() * 1.5).to(own.dtype)),
    "transplant": (lambda lm, region: transplanted(lm, region, other(lm)), lambda _, donors: donors),
}


def other(lm: LanguageModel) -> LanguageModel:
    return tiny_lm(lm.name, seed=1, dtype=lm.model.dtype)


def region_of(lm: LanguageModel, fraction: float = 0.2) -> Region:
    return locate(lm, prompt_set("harmful", ["How?"]), "random").select(fraction, scope="per_tensor")


def copied(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in lm.model.named_parameters()}


@pytest.mark.parametrize("kind", DISTURBANCES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_weight_inside_and_outside(kind: str, name: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(name, dtype=dtype)
    region, bits, before, donors = region_of(lm), fingerprints(lm.model), copied(lm), copied(other(lm))
    disturb, expected = DISTURBANCES[kind]
    with disturb(lm, region):
        during = copied(lm)
    for parameter, value in before.items():
        chosen = torch.zeros(value.numel(), dtype=torch.bool)
        chosen[region.indices.get(parameter, torch.zeros(0)).long()] = True
        wanted = torch.where(chosen.view(value.shape), expected(value, donors[parameter]), value)
        assert torch.equal(during[parameter], wanted), parameter
    assert fingerprints(lm.model) == bits
    with pytest.raises(ZeroDivisionError), disturb(lm, region):
        _ = 1 / 0
    assert fingerprints(lm.model) == bits


def test_what_was_changed_is_put_back_when_a_later_parameter_fails() -> None:
    lm = tiny_lm()
    region, bits = region_of(lm), fingerprints(lm.model)
    last = list(region.indices)[-1]

    def failing(name: str, weight: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        if name == last:
            raise MemoryError
        return torch.full((len(places),), 7.0)

    with pytest.raises(MemoryError), disturbed(lm, region, failing):
        pytest.fail("the block was entered")
    assert fingerprints(lm.model) == bits


def test_there_and_back_is_the_whole_other_model() -> None:
    """A transplant of everything makes the models the same, so it can be undone by one from a copy."""
    lm, donor = tiny_lm(), tiny_lm(seed=1)
    everything = region_of(lm, 1.0)
    assert differing(lm, everything, donor) == len(everything)
    assert differing(lm, everything, tiny_lm()) == 0
    with transplanted(lm, everything, donor):
        assert differing(lm, everything, donor) == 0
        with transplanted(lm, carried(everything, lm), tiny_lm()):
            assert differing(lm, everything, tiny_lm()) == 0
    assert fingerprints(lm.model) == fingerprints(tiny_lm().model)


def test_what_cannot_be_disturbed() -> None:
    lm = tiny_lm()
    region = region_of(lm)
    for factor in (1.0, -0.5, float("nan")):
        with pytest.raises(UsageError, match="The factor is"), scaled(lm, region, factor):
            pass
    with pytest.raises(RegionError, match="same architecture"), transplanted(lm, region, tiny_lm("gpt2")):
        pass
    with pytest.raises(RegionError, match="holds other values"), ablated(tiny_lm(seed=1), region):
        pass


def test_a_model_that_is_spread_over_processes(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        lm = tiny_lm()
        region = region_of(lm)
        fully_shard(lm.model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ModelError, match="spread over processes"), ablated(lm, region):
            pass
    finally:
        torch.distributed.destroy_process_group()

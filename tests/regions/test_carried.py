"""A region on a model made from the one it was located on."""

from __future__ import annotations

import pytest
import torch

from ballast.errors import RegionError
from ballast.locate import locate
from ballast.regions import carried
from tests.worlds import prompt_set, same_bits, tiny_lm

torch.set_num_threads(1)


def test_fits_the_other_model_and_says_where_it_is_from() -> None:
    region = locate(tiny_lm(), prompt_set("harmful", ["How?"]), "magnitude").select(0.1)
    hardened = tiny_lm()
    with torch.no_grad():
        hardened.model.get_parameter(next(iter(region.indices))).mul_(2)
    shapes = {name: value.shape for name, value in hardened.model.named_parameters()}
    with pytest.raises(RegionError, match="holds other values"):
        region.check_model(hardened.fingerprints(), shapes)
    moved = carried(region, hardened)
    moved.check_model(hardened.fingerprints(), shapes)
    assert same_bits(moved.indices, region.indices)
    assert moved.metadata.parents == (region.region_id,)
    assert moved.metadata.method == region.metadata.method
    with pytest.raises(RegionError, match="same architecture only"):
        carried(region, tiny_lm("gpt2"))

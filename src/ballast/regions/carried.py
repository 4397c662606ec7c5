"""A region of one model on another that was made from it."""

from __future__ import annotations

from ballast.errors import RegionError
from ballast.models import LanguageModel
from ballast.regions.metadata import ModelIdentity
from ballast.regions.region import Region


def carried(region: Region, lm: LanguageModel) -> Region:
    """The same coordinates on a model derived from the one the region was located on, such as a hardened one.

    Args:
        region: Located on the model that `lm` was made from; that is not checked, only that all shapes fit.
        lm: The model as it is now.

    Raises:
        RegionError: A parameter with selected weights is missing or has another shape.
    """
    parameters = dict(lm.model.named_parameters())
    for name in region.indices:
        if name not in parameters or tuple(parameters[name].shape) != region.layout[name].shape:
            raise RegionError(
                f"{lm.name} has no {name} of shape {region.layout[name].shape}; a region can be carried to models of "
                "the same architecture only."
            )
    everything = lm.fingerprints()
    model = ModelIdentity(
        source=lm.source,
        name=lm.name,
        revision=lm.revision,
        fingerprints={name: everything[name] for name in region.indices},
    )
    return Region(region.indices, region.metadata.model_copy(update={"model": model, "parents": (region.region_id,)}))

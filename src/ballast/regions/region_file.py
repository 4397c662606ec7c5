"""A region that stays in its file: for comparing regions that do not fit into memory together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from ballast.errors import RegionError
from ballast.regions.formed import Formed
from ballast.regions.metadata import RegionMetadata
from ballast.regions.region import checked, id_of, require_id
from ballast.regions.storage import open_region


@dataclass(frozen=True, eq=False)
class RegionFile:
    """A Region file of which one parameter at a time is in memory.

    Attributes:
        indices: As those of a `Region`, read from the file whenever they are asked for.
        metadata: As that of a `Region`.
        region_id: As that of a `Region`.
    """

    indices: Mapping[str, torch.Tensor]
    metadata: RegionMetadata
    region_id: str

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a Region file and check all of it, which reads it once.

        Raises:
            RegionError: As `Region.load`.
        """
        stored, metadata, region_id = open_region(Path(path))

        def read(name: str) -> torch.Tensor:
            try:
                return checked(name, stored[name], metadata.layout)
            except RegionError as error:
                raise RegionError(f"{path} is damaged: {error}") from error

        if not stored:
            raise RegionError(f"{path} is damaged: it selects nothing; locate the region again.")
        if missing := set(stored) - metadata.model.fingerprints.keys():
            raise RegionError(f"{path} is damaged: it has no fingerprint of {min(missing)}; locate the region again.")
        indices = Formed(stored, read)
        require_id(Path(path), id_of(indices, metadata), region_id)
        return cls(indices, metadata, region_id)

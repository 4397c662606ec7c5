"""Array types of this room."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.signedinteger[Any]]  # (k,) flat row-major indices, ascending and unique
Counts = NDArray[np.int64]

INT32_LIMIT = 2**31


def index_type(numel: int) -> type[np.int32] | type[np.int64]:
    """The integer type of flat indices into `numel` entries: int32 where it fits."""
    return np.int32 if numel < INT32_LIMIT else np.int64

"""Measurements that are expensive and never made twice, also not by the same call after an interruption."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ballast.regions.metadata import canonical_json
from ballast.runs import JsonLines


class Remembered:
    """What was measured under which circumstances; kept in a file of JSON lines if there is one.

    A row of the file names the work it belongs to; rows of other work are left alone.
    """

    def __init__(self, path: Path | None, work: str) -> None:
        """Read what is known.

        Args:
            path: The file, or None to remember in memory only.
            work: Identifies everything that decides a value and is not part of its circumstances.

        Raises:
            RunError: The file is damaged or cannot be read.
        """
        self._stored = JsonLines(path) if path else None
        self._work = work
        rows = self._stored.rows if self._stored else []
        self._known = {canonical_json(row["of"]): row["value"] for row in rows if row.get("work") == work}

    def value(self, of: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """The value under these circumstances, measured if it is not known; both must be JSON."""
        key = canonical_json(of)
        if key not in self._known:
            value = json.loads(json.dumps(measure()))
            if self._stored:
                self._stored.append([{"work": self._work, "of": dict(of), "value": value}])
            self._known[key] = value
        return self._known[key]

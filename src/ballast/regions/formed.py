"""Tensors by name that are formed when asked for, so that never more than one of them is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch


class Formed(Mapping[str, torch.Tensor]):
    """A mapping that forms a value each time it is asked for; names, order and length cost nothing."""

    def __init__(self, names: Iterable[str], form: Callable[[str], torch.Tensor]) -> None:
        """Hold the names, and how the tensor of a name is formed."""
        self._names = dict.fromkeys(names)
        self._form = form

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor, formed anew; KeyError if there is no such name."""
        if name not in self._names:
            raise KeyError(name)
        return self._form(name)

    def __contains__(self, name: object) -> bool:
        """Whether there is such a name; nothing is formed."""
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """The names in order."""
        return iter(self._names)

    def __len__(self) -> int:
        """Number of names."""
        return len(self._names)

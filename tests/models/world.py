"""What the tests of parts share."""

from __future__ import annotations

from tests.zoo import GROUPED

ATTENTION = ("query", "key", "value", "output")
GATED = ("gate", "up", "down")
LATENT = ("query_down", "query_up", "key_value_down", "key_value_up")
EXPERTS = ("experts.gate_up", "experts.down")


def both(*roles: str) -> dict[str, int]:
    """These roles once in each of two blocks."""
    return dict.fromkeys(roles, 2)


def two_layers(**settings: object) -> dict[str, object]:
    return {**GROUPED, **settings}

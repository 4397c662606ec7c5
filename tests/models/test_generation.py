"""What generation does with memory; that its answers are right is tested where they are used."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ballast.models.generation import answer_batch
from tests.worlds import tiny_lm


@pytest.mark.parametrize("frozen", [False, True])
def test_the_head_gets_contiguous_states(frozen: bool) -> None:
    """A strided slice times a frozen head makes torch copy the head for every row of the batch."""
    lm = tiny_lm()
    lm.model.requires_grad_(not frozen)
    head = lm.model.get_output_embeddings()
    products: list[torch.Tensor] = []
    plain = head.forward

    def watched(states: torch.Tensor) -> Any:
        products.append(states)
        return plain(states)

    head.forward = watched
    answers = answer_batch(lm, [[1, 2, 3], [4, 5], [6, 7, 8, 9]], max_new_tokens=3)
    assert len(answers) == 3
    assert products
    assert all(states.is_contiguous() for states in products)
    assert not head._forward_pre_hooks

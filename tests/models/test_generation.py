"""What generation does with memory; that its answers are right is tested where they are used."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from ballast.errors import UsageError
from ballast.models.generation import answer_batch, fitting_batch_size
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


SAID = (
    torch.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
)


@pytest.mark.parametrize("error", SAID)
def test_memory_that_runs_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the prompts at a time; one that does not fit alone is named as what it is."""
    lm = tiny_lm()
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    expected = [answer_batch(lm, [prompt], 3)[0] for prompt in prompts]
    plain: Any = lm.model.generate
    room = 1

    def narrow(input_ids: torch.Tensor, **options: Any) -> Any:
        if len(input_ids) > room:
            raise error
        return plain(input_ids=input_ids, **options)

    monkeypatch.setattr(lm.model, "generate", narrow)
    assert answer_batch(lm, prompts, 3) == expected
    room = 0
    with pytest.raises(UsageError, match=r"A prompt of 2 tokens and its answer of up to 3 do not fit into memory; .*"):
        answer_batch(lm, [[4, 5]], 3)


def test_other_errors_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()

    def broken(**_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(lm.model, "generate", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        answer_batch(lm, [[1, 2]], 3)


class TestBatchSize:
    def sized(self, monkeypatch: pytest.MonkeyPatch, pages: int, free: int, tokens: int = 100) -> int:
        """On a machine of so many pages of 4,096 bytes."""
        known = {"SC_PHYS_PAGES": pages, "SC_AVPHYS_PAGES": free, "SC_PAGE_SIZE": 4096}
        monkeypatch.setattr(os, "sysconf", known.__getitem__)
        return fitting_batch_size(tiny_lm(), tokens)

    def test_a_quarter_of_all_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A row: 2 x 2 layers x 2 heads x 8 numbers x 100 tokens x 4 bytes, and 12 bytes for each of 260 logits."""
        row = 2 * 2 * 2 * 8 * 100 * 4 + 12 * 260
        pages = 4 * 8 * row / 4096  # for eight rows
        assert self.sized(monkeypatch, int(pages) + 1, 1) == 8
        assert self.sized(monkeypatch, int(pages) - 1, 1) == 4
        assert self.sized(monkeypatch, 1, 1) == 1
        assert self.sized(monkeypatch, 10**6, 1) == 64

    def test_does_not_depend_on_what_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.sized(monkeypatch, 200, 1) == self.sized(monkeypatch, 200, 200)

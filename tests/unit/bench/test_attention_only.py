"""The published method: a transformer block that computes active tokens only."""

from __future__ import annotations

from functools import partial

import torch
from diffusers.models.attention import BasicTransformerBlock

from bench.attention_only import blocks_replaced, masked, recording
from tessera.types import Tensors

TOKENS = 16


@torch.inference_mode()
def test_active_tokens_are_the_dense_ones_and_others_the_recorded() -> None:
    """On the recorded input itself, so that attention sees what it saw then."""
    torch.manual_seed(0)
    block = BasicTransformerBlock(32, 4, 8, cross_attention_dim=24).eval()
    hidden, text = torch.randn(1, TOKENS, 32), torch.randn(1, 7, 24)
    kept: dict[str, Tensors] = {}
    with blocks_replaced([block], partial(recording, kept)):
        dense = block(hidden, encoder_hidden_states=text)
    active = torch.tensor([2, 3, 7])
    changed = hidden.clone()
    changed[:, 9] += 1  # nobody looks at an inactive token's input
    with blocks_replaced([block], partial(masked, kept, {TOKENS: active})):
        found = block(changed.repeat(2, 1, 1), encoder_hidden_states=text.repeat(2, 1, 1))
    assert torch.allclose(found, dense.repeat(2, 1, 1), atol=1e-5)
    moved = hidden.clone()
    moved[:, 2] += 1
    with blocks_replaced([block], partial(masked, kept, {TOKENS: active})):
        found = block(moved, encoder_hidden_states=text)
    others = [i for i in range(TOKENS) if i not in active]
    assert torch.equal(found[:, others], dense[:, others])
    assert not torch.allclose(found[:, active], dense[:, active], atol=1e-3)
    assert torch.equal(block(hidden, encoder_hidden_states=text), dense)  # it is itself again

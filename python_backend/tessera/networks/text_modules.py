"""The text encoders that engines run: wrappers of transformers' modules.

Beside the tokens they take what a request may change in them: vectors in the place of tokens
(textual inversion), and how many of the last layers are skipped. Without either they compute what
the network computes. Knows no engines, bundles or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tessera.networks.modules import GraphModule

VECTORS, CLIP_SKIP = "vectors", "clip_skip"
INPUTS = ("input_ids", VECTORS, CLIP_SKIP)


class TextEncoder(GraphModule):
    """`input_ids` (n, tokens), `vectors` (n, tokens, width), `clip_skip` (n,) ->
    `last_hidden_state` (n, tokens, width).

    A token below 0 has its vector instead of an embedding. Of a row that skips layers the result
    is the normalised output of the last layer that is left.
    """

    source: CLIPTextModel
    inputs = INPUTS
    outputs = ("last_hidden_state",)

    def forward(
        self, input_ids: torch.Tensor, vectors: torch.Tensor, clip_skip: torch.Tensor
    ) -> torch.Tensor:
        """See the class."""
        output = _encode(self.source, input_ids, vectors)
        last: torch.Tensor = output.last_hidden_state
        earlier = _skipped(output.hidden_states, clip_skip, last=1)
        if earlier is None:
            return last
        return torch.where(_any(clip_skip), self.source.final_layer_norm(earlier), last)


class PenultimateTextEncoder(GraphModule):
    """The inputs of `TextEncoder` -> `penultimate_hidden_state` (n, tokens, width) and a second
    output.

    The second output is `text_embeds` (n, width) for an encoder with a projection. Otherwise it is
    `last_hidden_state`, which nothing reads. It keeps the last layer's weights in the graph, since
    LoRAs refer to them. A row that skips layers has the output of an earlier one in the first.
    """

    source: CLIPTextModel | CLIPTextModelWithProjection
    inputs = INPUTS

    def __init__(self, source: nn.Module) -> None:
        super().__init__(source)
        projects = isinstance(source, CLIPTextModelWithProjection)
        second = "text_embeds" if projects else "last_hidden_state"
        self.outputs = ("penultimate_hidden_state", second)

    def forward(
        self, input_ids: torch.Tensor, vectors: torch.Tensor, clip_skip: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        output = _encode(self.source, input_ids, vectors)
        state: torch.Tensor = output.hidden_states[-2]
        earlier = _skipped(output.hidden_states, clip_skip, last=2)
        if earlier is not None:
            state = torch.where(_any(clip_skip), earlier, state)
        return state, output[self.outputs[1]]


def most_skipped(layers: int, *, pooled: bool) -> int:
    """How many layers of an encoder a request may skip.

    Args:
        layers: that it has.
        pooled: whether its variant has pooled embeddings and leaves the last layer out anyway.
    """
    return max(0, layers - (2 if pooled else 1))


def _encode(source: Any, input_ids: torch.Tensor, vectors: torch.Tensor) -> Any:
    """The network's outputs with all hidden states."""
    replaced = (input_ids < 0)[..., None]

    def insert(module: nn.Module, arguments: object, embedded: torch.Tensor) -> torch.Tensor:
        return torch.where(replaced, vectors.to(embedded.dtype), embedded)

    with _hooked(source.get_input_embeddings(), insert):
        return source(input_ids.clamp(min=0), output_hidden_states=True)


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., torch.Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _skipped(
    states: Sequence[torch.Tensor], clip_skip: torch.Tensor, *, last: int
) -> torch.Tensor | None:
    """Each row's hidden state if it skips layers; `None` if there are none to skip.

    Args:
        states: the embeddings and each layer's output.
        clip_skip: how many layers each row skips; a row of 0 gets any state.
        last: which state, from the end, a row has that skips none.
    """
    earlier = states[1:-last][::-1]
    if not earlier:
        return None
    chosen = earlier[0]
    for number, state in enumerate(earlier[1:], 2):
        chosen = torch.where((clip_skip == number)[:, None, None], state, chosen)
    return chosen


def _any(clip_skip: torch.Tensor) -> torch.Tensor:
    return (clip_skip > 0)[:, None, None]

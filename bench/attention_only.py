"""Edits by the published method: only transformer blocks skip tokens, convolutions run on the whole
picture (InstGenIE, EuroSys'26). Against dense edits and ours, on the same weights, in eager torch.

    python -m bench attention-only [--edits 16]

The method is written here and is no part of the product. In each transformer block the active
tokens alone go through attention and feed-forward layers. Keys, values and the block's output of
the others are the template's, recorded at the same step. Norms and convolutions see every token. A
bundle has no such graphs, so all three sides run in torch here, one after the other for each edit
of a trace (`bench.trace`), without a server. Writes `bench/results/attention_only.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock

from bench import report, trace
from bench.edit_lab import Edit, Lab, Made, Steps, Way
from bench.replay import percentiles
from bench.senders import SIDE, prepare
from bench.server import DEMO_BUNDLE, ROOT
from bench.trace import Workload
from tessera.denoise.canvas import TEMPLATE_SEED, Canvas
from tessera.denoise.tick import tick
from tessera.edits.state import widened
from tessera.engines.bundle import Bundle
from tessera.shared.settings import EngineKind
from tessera.sparse.tables import make_tables
from tessera.templates.storage import Storage
from tessera.types import Conditions, Tensors
from tessera_build.similarity import ssim

FOLDER = ROOT / "out" / "bench-attention-only"
FIRST, MARGIN = 2, 1
"""Dense steps at the beginning, and by how much both sparse sides' tokens exceed the mask: what
`fast` does."""
SIDES = ("dense", "attention only", "all layers")


class TorchLab(Lab):
    """A bundle's networks in eager torch, with the published method beside ours."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        super().__init__(folder, threads=threads)
        self._bundle = Bundle(folder, threads=threads, engine=EngineKind.TORCH)
        engine = self._bundle.engine
        self._sparse = type(self._sparse)(engine("unet_sparse"), engine("unet_text"))

    @property
    def _halves(self) -> tuple[Any, Any]:
        return self._networks.encoder, self._networks.decoder

    def _whole(
        self, sample: torch.Tensor, timestep: torch.Tensor, conditions: Conditions, join: Any = None
    ) -> torch.Tensor:
        encoder, decoder = self._halves
        inputs = {"sample": sample, "timestep": timestep, **conditions}
        mid, emb, *skips = encoder(*(inputs[name] for name in encoder.inputs))
        prediction: torch.Tensor = decoder(mid, emb, inputs["encoder_hidden_states"], *skips)
        return prediction

    @torch.inference_mode()
    def eager(self, edit: Edit) -> Made:
        """A dense edit."""
        request = self._start(edit, self._canvas(edit))
        began = time.perf_counter()
        while not request.finished:
            tick([request], self._whole, 1)
        return self._finish(request, edit, began)

    @torch.inference_mode()
    def remember(self, edit: Edit) -> list[dict[str, Tensors]]:
        """Keys, values and output of every transformer block, for each step of the template."""
        canvas, conditions = self._canvas(edit), self._conditions(edit, [""])
        sampler = self._sampler(Edit(edit.image, edit.mask, "", TEMPLATE_SEED, edit.steps))
        steps = []
        for step in range(edit.steps):
            kept: dict[str, Tensors] = {}
            with blocks_replaced(self._halves, partial(recording, kept)):
                given = sampler.template_input(canvas.clean, canvas.noise, step)
                self._whole(given, sampler.timesteps[[step]].float(), conditions)
            steps.append(kept)
        return steps

    @torch.inference_mode()
    def attention_only(self, edit: Edit, steps: list[dict[str, Tensors]]) -> Made:
        """An edit by the published method, from what `remember` returned."""
        canvas = self._canvas(edit)
        request = self._start(edit, canvas)
        tokens = self._tokens(canvas)
        began = time.perf_counter()
        while not request.finished:
            step = request.step
            replaced: AbstractContextManager[None] = contextlib.nullcontext()
            if step >= FIRST:
                replaced = blocks_replaced(self._halves, partial(masked, steps[step], tokens))
            with replaced:
                tick([request], self._whole, 1)
        return self._finish(request, edit, began)

    @torch.inference_mode()
    def sparse_eager(self, edit: Edit, way: Way, recordings: list[Steps]) -> Made:
        """An edit by our method, its dense steps in the same eager torch."""
        usual, self._unet = self._unet, _Eager(self._whole)  # type: ignore[assignment]
        try:
            return self.sparse(edit, way, recordings)
        finally:
            self._unet = usual

    def _tokens(self, canvas: Canvas) -> dict[int, torch.Tensor]:
        """Active tokens of each level, by how many tokens it has."""
        tables = make_tables(widened(canvas.active, MARGIN), self._program.paddings)
        return {level.total: torch.from_numpy(level.tokens) for level in tables.levels}


class _Eager:
    """What `Lab` asks of a UNet."""

    def __init__(self, predict: Callable[..., torch.Tensor]) -> None:
        self.predict = predict


Forward = Callable[..., torch.Tensor]


@contextlib.contextmanager
def blocks_replaced(halves: Sequence[Any], make: Callable[[str, Any], Forward]) -> Iterator[None]:
    """Have every transformer block of a UNet compute something else."""
    modules = [(name, module) for half in halves for name, module in half.named_modules()]
    blocks = {name: m for name, m in modules if isinstance(m, BasicTransformerBlock)}
    for name, block in blocks.items():
        block.forward = make(name, block)
    try:
        yield
    finally:
        for block in blocks.values():
            del block.forward


def recording(kept: dict[str, Tensors], name: str, block: Any) -> Forward:
    """A block that leaves its keys, values and output in `kept`, (1, tokens, channels) each."""

    def forward(hidden: torch.Tensor, **given: Any) -> torch.Tensor:
        normed = block.norm1(hidden)
        output: torch.Tensor = type(block).forward(block, hidden, **given)
        key, value = block.attn1.to_k(normed), block.attn1.to_v(normed)
        kept[name] = {"key": key, "value": value, "output": output}
        return output

    return forward


def masked(
    kept: dict[str, Tensors], tokens: dict[int, torch.Tensor], name: str, block: Any
) -> Forward:
    """A block that computes active tokens only; the others are the recorded ones."""
    cached = kept[name]

    def forward(
        hidden: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        active = tokens[hidden.shape[1]]
        rows = hidden[:, active]
        normed = block.norm1(rows)
        key, value = (
            _with(cached[kind], projection(normed), active)
            for kind, projection in (("key", block.attn1.to_k), ("value", block.attn1.to_v))
        )
        rows = rows + attend(block.attn1, normed, key, value)
        text = encoder_hidden_states
        others = block.attn2.to_k(text), block.attn2.to_v(text)
        rows = rows + attend(block.attn2, block.norm2(rows), *others)
        rows = rows + block.ff(block.norm3(rows))
        return _with(cached["output"], rows, active)

    return forward


def attend(
    attention: Any, rows: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Attention of rows (b, n, channels) to keys and values (b, tokens, channels)."""
    query, key, value = (
        tensor.unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for tensor in (attention.to_q(rows), key, value)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    output: torch.Tensor = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
    return output


def _with(cached: torch.Tensor, rows: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Cached values (1, tokens, channels) for every row of the batch, live ones in their places."""
    every = cached.repeat(len(rows), 1, 1)
    every[:, active] = rows
    return every


def measure(lab: TorchLab, edits: list[Edit]) -> list[dict[str, Any]]:
    """Milliseconds of denoising and SSIM inside the mask to the dense edit, of each side."""
    way, found = Way(Storage("float32"), dense_first=FIRST, dilate=MARGIN), []
    for number, edit in enumerate(edits):
        steps: list[Steps] = lab.record(edit, way.storage)
        sides: dict[str, Callable[[], Made]] = {
            "dense": partial(lab.eager, edit),
            "attention only": partial(lab.attention_only, edit, lab.remember(edit)),
            "all layers": partial(lab.sparse_eager, edit, way, steps),
        }
        turn = number % len(sides)
        order = [*list(sides)[turn:], *list(sides)[:turn]]
        made = {side: sides[side]() for side in order}
        ratio = float((edit.mask > 0).mean())
        row: dict[str, Any] = {"ratio": round(ratio, 4), "steps": edit.steps}
        for side in SIDES:
            near = ssim(made[side].image, made["dense"].image, edit.mask)
            row[side] = {"ms": round(made[side].milliseconds, 1), "ssim": round(near, 4)}
        found.append(row)
    return found


def edits_of(count: int, seed: int) -> list[Edit]:
    """The edits of a trace."""
    workload = Workload(scenario="edits", seed=seed)
    things = prepare(FOLDER, 1, workload.templates)
    return [
        Edit(
            things.pictures[a.template],
            things.mask(a.mask),
            things.prompt(a.prompt),
            a.seed,
            a.steps,
        )
        for a in trace.make(count, workload)
        if a.template is not None
    ]


def main() -> None:
    """Measure, print, write the report."""
    parser = argparse.ArgumentParser(description="attention-only sparse edits")
    parser.add_argument("--edits", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=report.path_of("attention_only"))
    options = parser.parse_args()
    machine = report.describe_machine(options.threads)
    lab = TorchLab(DEMO_BUNDLE, threads=options.threads)
    edits = edits_of(options.edits, options.seed)
    measure(lab, edits[:1])
    found = measure(lab, edits)
    sides = {side: of_side([row[side] for row in found]) for side in SIDES}
    for side, figures in sides.items():
        print(side, figures)
    settings = {name: getattr(options, name) for name in ("edits", "seed")}
    settings |= {"side": SIDE, "dense_first": FIRST, "margin": MARGIN}
    results = {"edits": found, "sides": sides}
    report.write("attention_only", settings, results, machine=machine, out=options.out)


def of_side(rows: list[dict[str, float]]) -> dict[str, Any]:
    """What a side did: milliseconds, pictures a second one after the other, likeness."""
    times = [row["ms"] for row in rows]
    return {
        "ms": percentiles(times),
        "pictures_per_s": round(1e3 * len(times) / sum(times), 3),
        "ssim": round(statistics.median(row["ssim"] for row in rows), 4),
    }


if __name__ == "__main__":
    main()

"""Weighted and long prompts on a real server, against diffusers with compel's embeddings."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compel import Compel, SplitLongTextMode
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from bench.server import DEMO_CHECKPOINT, Server
from tessera.errors import InvalidInput
from tessera_client import Client, Control, Lora, Result
from tests.samples.clip_skip import mended
from tests.samples.images import island, noise_blocks, ramp
from tests.samples.jobs import in_company
from tests.samples.served_loras import apart
from tests.samples.waiting import again_until

CIRCLE, STAR = "a large red circle at the left", "a small yellow star on a blue background"
LONG = f"{CIRCLE} " * 12 + STAR
SHORT: dict[str, Any] = {"steps": 8, "guidance": 5.0, "seed": 3, "scheduler": "euler"}


def by_diffusers(prompt: str, negative: str = "") -> Any:
    """The same with embeddings of compel, in whose syntax the prompts are."""
    pipe = StableDiffusionPipeline.from_pretrained(DEMO_CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    compel = Compel(
        pipe.tokenizer,
        pipe.text_encoder,
        truncate_long_prompts=False,
        split_long_text_mode=SplitLongTextMode.BRUTAL,
    )
    both = compel.pad_conditioning_tensors_to_same_length([compel(prompt), compel(negative)])
    return pipe(
        prompt_embeds=both[0],
        negative_prompt_embeds=both[1],
        num_inference_steps=SHORT["steps"],
        guidance_scale=SHORT["guidance"],
        generator=torch.Generator("cpu").manual_seed(SHORT["seed"]),
    ).images[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ours", "in_compel", "negative", "chunks"),
    [
        ("a large (red:1.6) circle", "a large (red)1.6 circle", "", 1),
        (LONG, LONG, "", 2),
        (STAR, STAR, LONG, 2),
        (f"{LONG} (blue:1.4)", f"{LONG} (blue)1.4", "a circle", 2),
    ],
)
def test_pictures_equal_diffusers_with_the_embeddings_of_compel(
    client: Client, ours: str, in_compel: str, negative: str, chunks: int
) -> None:
    drawn = client.generate(ours, negative_prompt=negative, **SHORT)
    assert apart(drawn.image, by_diffusers(in_compel, negative)) <= 2
    plain = client.generate(ours, negative_prompt=negative, prompt_syntax="plain", **SHORT)
    assert apart(drawn.image, plain.image) > 5, "no effect would prove nothing"
    assert (drawn.info.prompt_chunks, plain.info.prompt_chunks) == (chunks, 1)
    assert drawn.info.prompt_tokens_dropped == 0


def test_texts_of_different_lengths_are_drawn_beside_each_other(http_client: Client) -> None:
    wanted = [CIRCLE, LONG, f"({STAR}:1.2)", f"{STAR} BREAK {CIRCLE} BREAK {CIRCLE}", LONG]
    alone = [http_client.generate(prompt, **SHORT).image for prompt in wanted]
    with in_company(http_client), ThreadPoolExecutor(len(wanted)) as pool:
        together = list(pool.map(lambda p: http_client.generate(p, **SHORT), wanted))
    for one, other in zip(alone, together, strict=True):
        assert apart(one, other.image) <= 1
    assert [r.info.prompt_chunks for r in together] == [1, 2, 1, 3, 2]
    assert together[0].info.mean_batch > 1
    assert together[3].info.mean_batch == 1


def test_skipped_layers_and_words_equal_diffusers(
    server: Server, client: Client, tmp_path: Path
) -> None:
    """Both at once, beside a picture with neither, which stays as it is. A second after words were
    listed they are listed again.
    """
    learned = tmp_path / "learned_embeds.safetensors"
    save_file({"<spot>": torch.randn(2, 96, generator=torch.Generator().manual_seed(4))}, learned)
    prompt = "a large <spot> at the left"

    def draw(**options: Any) -> Result:
        return client.generate(prompt, **options, **SHORT)

    before = again_until(draw, lambda drawn: not drawn.info.words)
    place = server.log.parent / "adapters" / learned.name
    shutil.copy(learned, place)
    try:
        drawn = again_until(lambda: draw(clip_skip=1), lambda drawn: drawn.info.words)
        (row,) = again_until(lambda: [each for each in client.adapters() if each.word], len)
    finally:
        place.unlink()
    pipe = StableDiffusionPipeline.from_pretrained(DEMO_CHECKPOINT)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_textual_inversion(str(learned))
    expected = mended(pipe)(
        prompt,
        clip_skip=1,
        num_inference_steps=SHORT["steps"],
        guidance_scale=SHORT["guidance"],
        generator=torch.Generator("cpu").manual_seed(SHORT["seed"]),
    ).images[0]
    assert apart(drawn.image, expected) <= 2
    assert apart(drawn.image, before.image) > 5
    assert (drawn.info.clip_skip, drawn.info.words) == (1, ["<spot>"])
    assert (before.info.clip_skip, before.info.words) == (0, [])
    assert (row.word, row.kinds, row.targets) == (
        "<spot>",
        ["textual_inversion"],
        {"text_encoder": 2},
    )
    assert row.problem is None


@pytest.mark.parametrize("kind", ["LoRA", "ControlNet", "dense edit", "sparse edit"])
def test_the_same_text_twice_is_the_text(http_client: Client, kind: str) -> None:
    """Attention to each key twice is attention to each once, so this holds on every path."""

    def draw(prompt: str) -> Any:
        more: dict[str, Any]
        if kind.endswith("edit"):
            more = {"mode": kind.split()[0], "quality": "fast"}  # whatever prompt is recorded
            return http_client.edit(ramp(), island(), prompt, **more, **SHORT)
        more = {"loras": [Lora("outline")]}
        if kind == "ControlNet":
            more = {"controls": [Control("edges", image=noise_blocks(4))]}
        return http_client.generate(prompt, **SHORT, **more)

    once, twice, other = (draw(prompt) for prompt in (STAR, f"{STAR} BREAK {STAR}", CIRCLE))
    assert apart(once.image, twice.image) <= 1
    assert apart(once.image, other.image) > 5
    assert twice.info.prompt_chunks == 2
    assert (twice.info.sparse_ticks > 0) == (kind == "sparse edit")
    assert np.asarray(once.image).std() > 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt_syntax": "webui"}, "PROMPT_SYNTAX is 'webui'; accepted: weighted, plain"),
        ({"clip_skip": 3}, "CLIP_SKIP is 3; accepted: an integer from 0 to 2"),
        ({"negative_prompt": "((a:5):4)"}, "NEGATIVE_PROMPT has a part of weight 20; accepted: "),
    ],
)
def test_what_cannot_be_read(http_client: Client, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said.replace("(", r"\(")):
        http_client.generate(STAR, **SHORT, **options)

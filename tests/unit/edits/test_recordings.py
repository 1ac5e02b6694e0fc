"""What `encode` finds recorded for an edit, and what it has recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.codec.text import Embeddings
from tessera.denoise.canvas import TEMPLATE_SEED
from tessera.edits.quality import BUILT_IN, Policies
from tessera.edits.recordings import EditRecordings
from tessera.manifest import Graph
from tessera.plan import AdapterUse
from tessera.requests.edit import EditChoice
from tessera.templates.nearest import Nearness
from tessera.templates.store import RecordingKey, TemplateStore
from tests.samples.plans import plan
from tests.samples.requests import MANIFEST
from tests.samples.templates import PICTURE, filled

GRAPH = Graph("a.onnx", "config.json")
SPARSE = dataclasses.replace(MANIFEST, graphs={"unet_sparse": GRAPH, "unet_text": GRAPH})
LORA = (AdapterUse("night", "0a", 1.0),)
OWN, REGION = "1" * 16, "2" * 16
TEXTS = ("", OWN, REGION)


class Edits:
    """A store, and edits of one picture; by default with a region and a LoRA."""

    def __init__(self, root: Path, policies: Policies = BUILT_IN) -> None:
        self.store = TemplateStore(root, budget=10**9)
        logged: list[str] = []
        self._recordings = EditRecordings(self.store, SPARSE, policies, logged.append)
        self.template = self.store.keep(PICTURE)
        self.logged = logged

    def asks(
        self,
        mode: str = "auto",
        quality: str = "balanced",
        texts: tuple[str, ...] = TEXTS,
        adapters: tuple[AdapterUse, ...] = LORA,
    ) -> tuple[bool, list[str]]:
        """Whether an edit counts on what is recorded, and the prompts that it has recorded."""
        mask = np.zeros(PICTURE.shape[:2], np.uint8)
        mask[:32, :32] = 255
        edit = EditChoice(self.template, PICTURE, mask, 0, mode, quality=quality)
        wanted = plan(
            mode=mode,
            quality=quality,
            template=self.template,
            texts=texts,
            adapters=adapters,
            prompt_count=len(texts) - 1,
        )
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(len(texts), 3, 8, generator=generator)
        embeddings = Embeddings(hidden, torch.zeros(len(texts), 1))
        found = self._recordings.look_up(edit, wanted, texts, embeddings)
        notes = self.store.notes.keys(SPARSE.digest)
        for key in notes:
            assert key.adapters == adapters
            self.store.notes.remove(key)
        assert not self.logged
        assert self.store.pictures.holds(self.template), "later edits may name it"
        return found, [key.text for key in notes]

    def record(self, *texts: str, adapters: tuple[AdapterUse, ...] = LORA) -> None:
        key = RecordingKey(SPARSE.digest, self.template, "euler", 4, TEMPLATE_SEED, "", adapters)
        for text in texts:
            filled(self.store, key.with_text(text))


@pytest.fixture
def edits(tmp_path: Path) -> Edits:
    return Edits(tmp_path)


def test_regions_with_loras_have_nothing_recorded_that_would_not_serve(edits: Edits) -> None:
    """With LoRAs only recordings with the own prompts reach a quality."""
    assert edits.asks() == (False, [])
    edits.record("")
    assert edits.asks() == (False, [])
    edits.record(OWN)
    assert edits.asks() == (False, [])
    edits.record(REGION)
    assert edits.asks() == (True, [])


@pytest.mark.parametrize(
    ("options", "before", "with_the_empty"),
    [
        ({"adapters": ()}, (False, [""]), (True, [])),
        ({"quality": "fast"}, (False, [""]), (True, [])),
        ({"mode": "sparse"}, (False, []), (True, [])),
        ({"texts": ("", OWN)}, (False, ["", OWN]), (False, [OWN])),
        ({"texts": ("", OWN), "adapters": ()}, (False, ["", OWN]), (True, [OWN])),
        ({"mode": "dense"}, (False, []), (False, [])),
    ],
    ids=["no LoRA", "fast", "sparse", "no region", "neither", "dense"],
)
def test_what_one_of_the_two_has_recorded(
    edits: Edits,
    options: dict[str, object],
    before: tuple[bool, list[str]],
    with_the_empty: tuple[bool, list[str]],
) -> None:
    """An edit in MODE `sparse` waits, so it leaves no note."""
    assert edits.asks(**options) == before  # type: ignore[arg-type]
    edits.record("", adapters=options.get("adapters", LORA))  # type: ignore[arg-type]
    assert edits.asks(**options) == with_the_empty  # type: ignore[arg-type]


def test_regions_of_a_bundle_whose_empty_recordings_reach_nothing(tmp_path: Path) -> None:
    """As a probe may find."""
    reached = {
        pair: tuple((limit, ()) for limit, _ in rows) if pair[1] is Nearness.EMPTY else rows
        for pair, rows in BUILT_IN.reached.items()
    }
    edits = Edits(tmp_path, Policies(reached, measured=True))
    assert edits.asks(adapters=()) == (False, [])
    edits.record("", adapters=())
    assert edits.asks(adapters=()) == (False, [])
    assert edits.asks(adapters=(), mode="sparse") == (True, [])

"""A bundle in a folder whose name has letters beyond ASCII. Triton's Python processes know ASCII
only, and have other letters of paths as surrogates.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tessera_client import Client, Control, Lora
from tests.samples.images import noise_blocks
from tests.samples.served_loras import OPTIONS, PROMPT
from tests.samples.servers import ended_whole


@pytest.fixture(scope="module")
def client(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a server on such a bundle."""
    folder = tmp_path_factory.mktemp("modèle-é")
    shutil.copytree(bundle, folder / "Модель")
    with (
        ended_whole(folder / "Модель", folder / "log", "--lora-path=side") as server,
        Client(server.http, timeout=300) as opened,
    ):
        yield opened


def test_everything_is_found(client: Client) -> None:
    assert {adapter.problem for adapter in client.adapters()} == {None}
    plain = client.generate(PROMPT, seed=1, **OPTIONS)
    adapted = client.generate(PROMPT, seed=1, loras=[Lora("outline")], **OPTIONS)
    assert (adapted.info.lora_path, adapted.info.loras[0]["name"]) == ("side", "outline")
    control = [Control("edges", image=noise_blocks(1))]
    controlled = client.generate(PROMPT, seed=1, controls=control, **OPTIONS)
    assert len({result.image.tobytes() for result in (plain, adapted, controlled)}) == 3
    image, where = np.full((128, 128, 3), 90, np.uint8), (32, 32, 40, 40)
    client.register_template(image, steps=OPTIONS["steps"], scheduler=OPTIONS["scheduler"])
    edited = client.edit(image, where, PROMPT, mode="sparse", seed=1, **OPTIONS)
    assert edited.info.mode == "sparse"

"""LoRAs on a real server: files that come while it runs, several at once, in company; against
diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.server import Server
from tessera.errors import InvalidInput
from tessera_build.demo.scenes import describe, held_out_scenes
from tessera_build.demo.styles import STYLES, shows
from tessera_client import Client, Lora, Result
from tests.fakes import lora
from tests.samples.served_loras import FILES, OPTIONS, PROMPT, apart, by_diffusers, draw, pipeline


@pytest.fixture(scope="module")
def files(server: Server) -> Iterator[Path]:
    """LoRAs of random numbers, put where the running server finds them."""
    pipe, folder = pipeline(), server.log.parent / "adapters"
    for seed, (name, (layout, rank)) in enumerate(FILES.items()):
        pairs = lora.random_pairs(pipe, rank=rank, seed=seed, size=0.7)
        lora.save(folder / f"{name}.safetensors", lora.LAYOUTS[layout](pairs))
    yield folder
    for name in FILES:
        (folder / f"{name}.safetensors").unlink()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "chosen",
    [
        [Lora("test-a", 1.0)],
        [Lora("test-a", 0.6, 0.2), Lora("test-b", -0.8), Lora("test-c", 1.3, 0.0)],
    ],
    ids=["one", "three"],
)
def test_pictures_equal_diffusers(http_client: Client, files: Path, chosen: list[Lora]) -> None:
    expected = by_diffusers(files, chosen)
    served = draw(http_client, *chosen).image
    assert apart(served, draw(http_client).image) > 20, "no effect would prove nothing"
    assert apart(served, expected) <= 2


def test_a_b_a(client: Client, files: Path) -> None:
    base, first = draw(client), draw(client, Lora("test-a"))
    draw(client, Lora("test-b", 0.5), Lora("test-c"))
    again, last = draw(client, Lora("test-a")), draw(client)
    assert first.image.tobytes() == again.image.tobytes()
    assert base.image.tobytes() == last.image.tobytes()
    assert again.info.refit_ms > 0
    assert again.info.loras[0]["name"] == "test-a"


def test_eight_at_once_with_five_sets_equal_their_solo_runs(
    http_client: Client, files: Path
) -> None:
    a, b, c = (Lora(name) for name in FILES)
    sets: list[tuple[Lora, ...]] = [(), (a,), (b,), (), (Lora("test-a", 0.5),), (a,), (b, c), ()]
    alone = [draw(http_client, *s, seed=i).image for i, s in enumerate(sets)]
    with ThreadPoolExecutor(len(sets)) as pool:
        together = list(pool.map(lambda i: draw(http_client, *sets[i], seed=i), range(len(sets))))
    for one, other in zip(alone, together, strict=True):
        assert apart(one, other.image) <= 1


def test_the_list_of_loras(client: Client, files: Path) -> None:
    found = {adapter.name: adapter for adapter in client.adapters()}
    for name, (layout, rank) in FILES.items():
        assert (found[name].problem, found[name].layout) == (None, layout)
        assert found[name].ranks == (rank, rank)


def test_the_policy_passes_through_the_ensemble(client: Client, files: Path) -> None:
    picture = client.generate(PROMPT, loras=[Lora("test-a")], lora_policy="bounded", **OPTIONS)
    assert picture.info.adapted_at is not None
    with pytest.raises(InvalidInput, match="lora_policy is 'lazy'; accepted: exact, bounded"):
        client.generate(PROMPT, loras=[Lora("test-a")], lora_policy="lazy", **OPTIONS)


def test_a_sparse_edit_of_the_whole_picture_is_the_dense_one(
    http_client: Client, files: Path
) -> None:
    """Every token is active, so nothing of the recording is read."""
    image = ((90 + np.indices((128, 128)).sum(0)) % 256).astype(np.uint8)[..., None].repeat(3, 2)
    everywhere, loras = np.full((128, 128), 255, np.uint8), [Lora("test-a"), Lora("test-c", 0.5)]

    def edit(mode: str, *chosen: Lora) -> Result:
        options: Any = {"seed": 1, "quality": "fast", **OPTIONS}
        return http_client.edit(image, everywhere, PROMPT, mode=mode, loras=chosen, **options)

    before, sparse, dense = edit("sparse"), edit("sparse", *loras), edit("dense", *loras)
    assert (sparse.info.mode, sparse.info.lora_path) == ("sparse", "refit")
    assert apart(sparse.image, dense.image) <= 1
    assert apart(sparse.image, before.image) > 20, "no effect would prove nothing"
    after = edit("sparse")
    assert apart(after.image, before.image) <= 1  # the engine's weights were packed before
    assert edit("sparse", *loras).image.tobytes() == sparse.image.tobytes()
    assert edit("sparse").image.tobytes() == after.image.tobytes()


def test_edits_say_whether_their_loras_were_recorded(http_client: Client, files: Path) -> None:
    image, where = np.full((128, 128, 3), 90, np.uint8), (32, 32, 40, 40)
    chosen: Any = {"loras": [Lora("test-b")], **OPTIONS}
    schedule = {"steps": OPTIONS["steps"], "scheduler": OPTIONS["scheduler"]}

    def recorded(quality: str) -> tuple[str, str | None, bool | None]:
        options: Any = {"mode": "sparse", "quality": quality, "seed": 1, **chosen}
        info = http_client.edit(image, where, PROMPT, **options).info
        return info.mode, info.recording, info.recorded_loras

    http_client.register_template(image, **schedule)
    assert recorded("fast") == ("sparse", "empty", False)
    made = http_client.register_template(image, prompt=PROMPT, loras=[Lora("test-b")], **schedule)
    assert made.loras == [{"name": "test-b", "weight": 1.0}]
    assert recorded("balanced") == ("sparse", "own", True)
    with pytest.raises(InvalidInput, match="'test-d'"):
        http_client.register_template(image, loras=[Lora("test-d")], **schedule)


def test_sparse_and_dense_edits_with_different_loras_equal_their_solo_runs(
    http_client: Client, files: Path
) -> None:
    image, where = np.full((128, 128, 3), 90, np.uint8), (32, 32, 40, 40)
    kinds = [
        ("sparse", ()),
        ("sparse", ("test-a",)),
        ("sparse", ("test-b",)),
        ("dense", ("test-a",)),
        ("dense", ("test-b",)),
        ("dense", ()),
        ("sparse", ("test-a",)),
        ("sparse", ()),
    ]

    def edit(number: int) -> Result:
        mode, names = kinds[number]
        options: Any = {"seed": number, "quality": "fast", **OPTIONS}
        loras = [Lora(name) for name in names]
        return http_client.edit(image, where, PROMPT, mode=mode, loras=loras, **options)

    alone = [edit(number) for number in range(len(kinds))]
    with ThreadPoolExecutor(len(kinds)) as pool:
        together = list(pool.map(edit, range(len(kinds))))
    for one, other in zip(alone, together, strict=True):
        assert one.info.mode == other.info.mode
        assert apart(one.image, other.image) <= 1


def test_unknown_names_and_broken_files(client: Client, files: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'test-d'.*close: test-a, test-b, test-c"):
        draw(client, Lora("test-d"))
    broken = files / "test-broken.safetensors"
    broken.write_bytes((files / "test-a.safetensors").read_bytes()[:-100])
    try:
        with pytest.raises(InvalidInput, match="this file is damaged or ends early"):
            draw(client, Lora("test-broken"))
    finally:
        broken.unlink()


SCENES = [s for s in held_out_scenes(20) if len(s.items) == 1][:8]


def styled_pictures(client: Client, *loras: Lora) -> list[Any]:
    """A picture of each scene, all asked for at once."""
    with ThreadPoolExecutor(len(SCENES)) as pool:
        jobs = [
            pool.submit(client.generate, describe(s), seed=i, loras=loras, steps=20, guidance=4.0)
            for i, s in enumerate(SCENES)
        ]
        return [np.asarray(job.result().image, np.float32) / 255 for job in jobs]


@pytest.fixture(scope="module")
def without_styles(server: Server) -> list[Any]:
    with Client(server.http, timeout=300) as client:
        return styled_pictures(client)


@pytest.mark.parametrize("style", STYLES)
def test_the_demo_loras_change_what_they_should(
    http_client: Client, without_styles: list[Any], style: str
) -> None:
    """By the judge of styles, over eight unseen prompts; as many as half need not succeed, since
    small shapes have no room for a style.
    """

    def styled(pictures: list[Any]) -> int:
        return sum(shows(p, s, style) for p, s in zip(pictures, SCENES, strict=True))

    assert styled(without_styles) == 0
    assert styled(styled_pictures(http_client, Lora(style))) >= 3

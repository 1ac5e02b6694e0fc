"""The low-rank side path on a real server: in company, on two devices, and against diffusers. The
server has pinned and placed ControlNets, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.server import Server
from tessera.shared.processes import model_processes
from tessera_client import Client, Control, Lora
from tests.fakes import lora
from tests.samples.images import noise_blocks
from tests.samples.jobs import in_company
from tests.samples.served_loras import FILES, apart, by_diffusers, draw, pipeline
from tests.samples.servers import ended_whole, family_of

PLACES = (
    "--pin=edges",
    "--place=edges=cpu",
    "--place=silhouette=cpu",
    "--place=unet=cpu,cpu",
)
"""The UNet is on two devices. That ControlNets are pinned has nothing to do with LoRAs: the two
share a server to start one less."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRAs of random numbers, on linear layers and 3x3 convolutions."""
    pipe, folder = pipeline(), tmp_path_factory.mktemp("adapters")
    modules = (*lora.ATTENTION, "net.2", "conv1", "conv_shortcut")
    for seed, (name, (layout, rank)) in enumerate(FILES.items()):
        pairs = lora.random_pairs(pipe, rank=rank, seed=seed, modules=modules, size=0.7)
        lora.save(folder / f"{name}.safetensors", lora.LAYOUTS[layout](pairs))
    return folder


@pytest.fixture(scope="module")
def side_server(
    bundle: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that uses the side path whenever it can."""
    flags = ("--lora-path=side", f"--adapters={folder}", *PLACES)
    with ended_whole(bundle, tmp_path_factory.mktemp("side") / "log", *flags) as server:
        yield server


@pytest.fixture
def aside(side_server: Server) -> Iterator[Client]:
    """A client of it."""
    with Client(side_server.http, timeout=300) as client:
        yield client


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "chosen",
    [[Lora("test-a", 1.0)], [Lora("test-a", 0.6, 0.2), Lora("test-b", -0.8)]],
    ids=["one", "two"],
)
def test_pictures_equal_diffusers(aside: Client, folder: Path, chosen: list[Lora]) -> None:
    expected = by_diffusers(folder, chosen)
    served = draw(aside, *chosen)
    assert served.info.lora_path == "side"
    assert apart(served.image, draw(aside).image) > 20, "no effect would prove nothing"
    assert apart(served.image, expected) <= 2


def test_eight_at_once_with_five_sets_share_steps_and_equal_their_solo_runs(aside: Client) -> None:
    a, b, c = (Lora(name) for name in FILES)
    sets: list[tuple[Lora, ...]] = [(), (a,), (b,), (), (Lora("test-a", 0.5),), (a,), (b, c), ()]
    alone = [draw(aside, *s, seed=i).image for i, s in enumerate(sets)]
    with in_company(aside, 2), ThreadPoolExecutor(len(sets)) as pool:
        together = list(pool.map(lambda i: draw(aside, *sets[i], seed=i), range(len(sets))))
    for one, other, own in zip(alone, together, sets, strict=True):
        assert apart(one, other.image) <= 1
        assert other.info.lora_path == ("side" if own else None)
        assert (other.info.switches, other.info.passed_over) == (0, 0)
    assert min(picture.info.mean_batch for picture in together) > 2


def test_a_pinned_controlnet_is_there_from_the_start(side_server: Server, aside: Client) -> None:
    assert side_server.ready("controlnet_edges")
    assert not side_server.ready("controlnet_silhouette"), "nobody has asked for it"

    def processes() -> set[int]:
        (triton,) = [p for p in family_of(side_server) if "tritonserver" in p.name()]
        found = model_processes(triton.pid).items()
        return {pid for pid, name in found if name == "controlnet_edges"}

    before = processes()
    assert before
    aside.generate("a", steps=2, controls=[Control("edges", image=noise_blocks(1))])
    assert processes() == before, "it was loaded again"

"""Adapters of every kind on a real server, eight in flight at once, under names of all sorts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.server import Server
from tessera.errors import Cancelled
from tessera_client import Client, Lora
from tests.fakes import kinds, lora
from tests.samples.jobs import ENDLESS, unique, wait_for_step
from tests.samples.served_loras import OPTIONS, PROMPT, apart, draw, pipeline

FILES = {
    "café": dict.fromkeys(lora.ATTENTION, kinds.dora),
    "kinds/loha": dict.fromkeys(lora.ATTENTION, kinds.loha),
    "A:B": dict.fromkeys(lora.ATTENTION, kinds.lokr),
    "kinds/ia3": dict.fromkeys(("to_v", "v_proj", "conv1"), kinds.ia3),
    "kinds/full": {
        "norm1": kinds.norm, "to_q": kinds.full, "conv2": kinds.full, "token_embedding": kinds.full,
    },
    "kinds/core": {"conv1": kinds.locon_with_core, "to_k": kinds.lora},
}  # fmt: skip
"""Name -> kinds by the end of modules' names."""
SETS: list[tuple[Lora, ...]] = [
    (),
    *((Lora(name, 0.8),) for name in FILES),
    (Lora("café", 0.5), Lora("kinds/full", 0.5)),
]
SLOTS = 8
"""Requests that a server denoises at a time."""


@pytest.fixture(scope="module")
def files(server: Server) -> Iterator[None]:
    """Put where the running server finds them."""
    pipe, folder = pipeline(), server.log.parent / "adapters"
    paths = []
    for seed, (name, parts) in enumerate(FILES.items()):
        tensors, _ = kinds.whole_file(pipe, parts, seed)
        paths.append(lora.save(folder / f"{name}.safetensors", tensors))
    capitals = folder / "X.SAFETENSORS"
    capitals.write_bytes(paths[0].read_bytes())
    yield
    for path in (*paths, capitals):
        path.unlink()
    (folder / "kinds").rmdir()


def test_the_list_tells_kinds(client: Client, files: None) -> None:
    found = {adapter.name: adapter for adapter in client.adapters()}
    assert {name: found[name].problem for name in (*FILES, "X")} == dict.fromkeys((*FILES, "X"))
    assert [found[name].kinds for name in FILES] == [
        ["dora"], ["loha"], ["lokr"], ["ia3"], ["full"], ["lora"],
    ]  # fmt: skip


def test_a_misspelt_name_is_told_the_right_one(client: Client, files: None) -> None:
    with pytest.raises(Exception, match=r"'cafe'.*close: café"):
        draw(client, Lora("cafe"))


def test_a_b_a(client: Client, files: None) -> None:
    """Every set, then all once more in the other order."""
    first = [draw(client, *s) for s in SETS]
    again = [draw(client, *s) for s in reversed(SETS)]
    for one, other in zip(first, reversed(again), strict=True):
        assert one.image.tobytes() == other.image.tobytes()
    assert len({picture.image.tobytes() for picture in first}) == len(SETS)


def test_eight_in_flight_equal_their_solo_runs(http_client: Client, files: None) -> None:
    """Other jobs hold all slots until the eight wait for them."""
    alone = [draw(http_client, *s, seed=i).image for i, s in enumerate(SETS)]
    held, jobs = [[unique(name) for _ in range(SLOTS)] for name in ("held", "kinds")]

    def hold(job_id: str) -> None:
        with pytest.raises(Cancelled):
            http_client.generate(PROMPT, job_id=job_id, width=64, height=64, priority=1, **ENDLESS)

    def run(number: int) -> object:
        job, loras = jobs[number], SETS[number]
        options = {**OPTIONS, "loras": loras}
        return http_client.generate(PROMPT, job_id=job, seed=number, **options).image

    with ThreadPoolExecutor(2 * SLOTS) as pool:
        holding = [pool.submit(hold, job_id) for job_id in held]
        for job_id in held:
            wait_for_step(http_client, job_id, 1)
        running = [pool.submit(run, number) for number in range(SLOTS)]
        waiting = [wait_for_step(http_client, job_id, 0) for job_id in jobs]
        assert {status.phase for status in waiting} == {"queued"}
        for job_id in held:
            assert not http_client.cancel(job_id).ended
        for ended in holding:
            ended.result()
        together = [one.result() for one in running]
    for one, other in zip(alone, together, strict=True):
        assert apart(one, other) <= 1

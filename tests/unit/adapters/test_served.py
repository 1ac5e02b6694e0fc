"""Requests with LoRAs through the models, against diffusers with the same files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.engines.bundle import Bundle
from tests.fakes import triton_python_backend_utils as pb_utils
from tests.fakes.models import Models, Picture, Refused, models_of
from tests.samples.adapters import COMMON, FILES, apart, by_diffusers, loras
from tests.samples.bundles import IN_HALF


@pytest.fixture(scope="module")
def sd15(
    folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Models]:
    board = tmp_path_factory.mktemp("board") / "board"
    with models_of(folders("sd15"), board, TESSERA_LORA_PATH="refit") as models:
        yield models


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["sd15", "sdxl", *IN_HALF])
def test_pictures_equal_diffusers(
    folders: Callable[[str], Path], variant: str, tmp_path: Path
) -> None:
    """One LoRA, and two with weights below zero and above one, the text encoders apart."""
    bundle = folders(variant)
    with models_of(bundle, tmp_path / "board") as models:
        plain = models.generate(**COMMON, SEED=3, GUIDANCE=4.0).image
        for chosen in ([("a", 0.8, 0.8)], [("b", -0.5, 1.2), ("c", 1.4, 0.3)]):
            served = models.generate(**COMMON, SEED=3, GUIDANCE=4.0, LORAS=loras(*chosen))
            assert apart(served.image, plain) > 20, "a LoRA without effect would prove nothing"
            assert apart(served.image, by_diffusers(variant, bundle, chosen, 3)) <= 2


def test_text_weight_is_weight_unless_given(sd15: Models) -> None:
    implied = sd15.generate(**COMMON, SEED=1, LORAS=loras(("a", 0.8)))
    given = sd15.generate(**COMMON, SEED=1, LORAS=loras(("a", 0.8, 0.8)))
    other = sd15.generate(**COMMON, SEED=1, LORAS=loras(("a", 0.8, 0.0)))
    assert np.array_equal(implied.image, given.image)
    assert not np.array_equal(implied.image, other.image)
    assert implied.info["loras"][0]["text_weight"] == 0.8


def test_the_text_encoder_alone(sd15: Models) -> None:
    """The UNet goes on with the base."""
    before = sd15.generate(**COMMON, SEED=1)
    text_only = sd15.generate(**COMMON, SEED=1, LORAS=loras(("a", 0.0, 1.0)))
    assert not np.array_equal(before.image, text_only.image)
    assert sd15.unet._switch.result()._patcher.current == ()


def test_a_b_a_and_the_base_again(sd15: Models) -> None:
    wanted = [(), (("a", 1.0),), (("b", 0.7), ("c", 2.0)), (("a", 1.0),), ()]
    pictures = [sd15.generate(**COMMON, SEED=2, LORAS=loras(*w)).image for w in wanted]
    assert np.array_equal(pictures[1], pictures[3])
    assert np.array_equal(pictures[0], pictures[4])
    assert len({p.tobytes() for p in pictures}) == 3


def test_the_order_of_loras_does_not_matter(sd15: Models) -> None:
    one = sd15.generate(**COMMON, SEED=2, LORAS=loras(("a", 1.0), ("b", 0.5)))
    other = sd15.generate(**COMMON, SEED=2, LORAS=loras(("b", 0.5), ("a", 1.0)))
    assert np.array_equal(one.image, other.image)
    assert other.info["switches"] == 0


def test_eight_requests_with_five_sets_equal_their_solo_runs(sd15: Models) -> None:
    sets: list[Any] = [
        (), (("a", 1.0),), (("b", 1.0),), (), (("a", 0.5),), (("a", 1.0),),
        (("b", 0.3), ("c", 1.0)), (),
    ]  # fmt: skip
    requests = [{**COMMON, "SEED": i, "LORAS": loras(*s)} for i, s in enumerate(sets)]
    alone = [sd15.generate(**r) for r in requests]
    together = sd15.together([dict(r) for r in requests])
    for one, other in zip(alone, together, strict=True):
        assert apart(one.image, other.image) <= 1
    assert sum(p.info["switches"] > 0 for p in together) >= 4
    assert [p.info["mean_batch"] for p in together if not p.info["loras"]] == [3.0] * 3
    waits = [p.info["passed_over"] for p in together]
    assert min(waits) == 0
    assert max(waits) == 16  # five sets, one after the other, four steps each


def test_info_says_what_was_done(sd15: Models) -> None:
    sd15.generate(**COMMON)
    info = sd15.generate(**COMMON, LORAS=loras(("a", 0.25, 0.75))).info
    digest = info["loras"][0].pop("digest")
    assert len(digest) == 16
    what = {"kinds": ["lora"], "skipped": []}
    assert info["loras"] == [{"name": "a", "weight": 0.25, "text_weight": 0.75, **what}]
    assert info["refit_ms"] > 0
    assert (info["switches"], info["passed_over"], info["adapted_at"]) == (1, 0, 0)
    assert sd15.generate(**COMMON, LORAS=loras(("a", 0.25, 0.75))).info["switches"] == 0


def with_a_base_request(models: Models, policy: str) -> Picture:
    """The second of two requests that are denoised together; the first is of the base."""
    models.generate(**COMMON)
    adapted = {**COMMON, "STEPS": 10, "LORAS": loras(("a", 1.0)), "SEED": 2}
    pictures = models.together(
        [{**COMMON, "STEPS": 10}, {**adapted, "parameters": {"lora_policy": policy}}]
    )
    return pictures[1]


def test_bounded_requests_begin_with_the_base(sd15: Models) -> None:
    exact = with_a_base_request(sd15, "exact")
    assert (exact.info["passed_over"], exact.info["adapted_at"]) == (10, 0)
    bounded = with_a_base_request(sd15, "bounded")
    assert bounded.info["adapted_at"] == 3  # the bundle's share of ten steps
    assert bounded.info["passed_over"] == 7
    assert apart(exact.image, bounded.image) > 0


def test_bounded_requests_do_not_wait_for_anything_on_their_own(sd15: Models) -> None:
    sd15.generate(**COMMON, LORAS=loras(("a", 1.0)))
    again = sd15.generate(**COMMON, LORAS=loras(("a", 1.0)), parameters={"lora_policy": "bounded"})
    assert again.info["adapted_at"] == 0


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (loras(("aa", 1)), "LORAS[0].name is 'aa'; accepted: one of the 3 installed LoRAs; close"),
        (loras(("a", 1.0), ("zebra", 1.0)), "LORAS[1].name is 'zebra'; accepted: a, b, c"),
        (loras(("../adapters/a", 1.0)), "LORAS[0].name is '../adapters/a'; accepted: a, b, c"),
        (loras(("a", 1.0), ("a", 2.0)), "LORAS[1].name is 'a'; accepted: each LoRA once"),
        (loras(("a", float("nan"))), "LORAS[0].weight is nan; accepted: "),
        (loras(("a", 1e9)), "LORAS[0].weight is 1000000000.0; accepted: "),
        (loras(*[("a", 1.0)] * 50), "LORAS has 50 elements; accepted: a JSON list of at most 8"),
        ("[{", "LORAS is '[{'; accepted: a JSON list of at most 8"),
    ],
    ids=["close", "unknown", "path", "twice", "NaN", "huge", "many", "no JSON"],
)  # fmt: skip
def test_bad_values(sd15: Models, value: str, sentence: str) -> None:
    with pytest.raises(Refused) as caught:
        sd15.generate(**COMMON, LORAS=value)
    assert str(caught.value).startswith(sentence)
    assert caught.value.code == pb_utils.TritonError.INVALID_ARG


def test_a_bad_policy(sd15: Models) -> None:
    with pytest.raises(Refused, match="lora_policy is 'lazy'; accepted: exact, bounded"):
        sd15.generate(**COMMON, parameters={"lora_policy": "lazy"})


@pytest.fixture
def own(folders: Callable[[str], Path], tmp_path: Path) -> Iterator[tuple[Models, Path]]:
    """Models of a bundle without LoRAs yet, and its folder of them."""
    bundle = tmp_path / "bundle"
    shutil.copytree(folders("sd15"), bundle, ignore=shutil.ignore_patterns("adapters"))
    with models_of(bundle, tmp_path / "board") as models:
        yield models, bundle / "adapters"


def test_files_come_change_and_go(own: tuple[Models, Path], folders: Callable[[str], Path]) -> None:
    models, folder = own
    wanted = {**COMMON, "SEED": 1, "LORAS": loras(("new", 1.0))}
    with pytest.raises(Refused, match="accepted: nothing, since no LoRA is installed"):
        models.generate(**wanted)
    folder.mkdir()
    shutil.copy(folders("sd15") / "adapters" / "a.safetensors", folder / "new.safetensors")
    first = models.generate(**wanted)
    shutil.copy(folders("sd15") / "adapters" / "b.safetensors", folder / "new.safetensors")
    second = models.generate(**wanted)
    assert not np.array_equal(first.image, second.image)
    assert first.info["loras"][0]["digest"] != second.info["loras"][0]["digest"]
    whole = (folder / "new.safetensors").read_bytes()
    (folder / "new.safetensors").write_bytes(whole[:5000])
    with pytest.raises(Refused, match="this file is damaged or ends early"):
        models.generate(**wanted)
    (folder / "new.safetensors").write_bytes(whole)
    assert np.array_equal(models.generate(**wanted).image, second.image)
    (folder / "new.safetensors").unlink()
    with pytest.raises(Refused, match="no LoRA is installed"):
        models.generate(**wanted)


def test_an_overview_of_the_library(
    own: tuple[Models, Path], folders: Callable[[str], Path]
) -> None:
    from tessera.adapters.overview import Overview

    _, folder = own
    shutil.copytree(folders("sd15") / "adapters", folder)
    shutil.copy(folders("sdxl") / "adapters" / "b.safetensors", folder / "other.safetensors")
    (folder / "torn.safetensors").write_bytes(b"")
    rows = {row["name"]: row for row in Overview(Bundle(folder.parent)).rows()}
    assert list(rows) == ["a", "b", "c", "other", "torn"]
    assert rows["torn"]["problem"] == "is not a safetensors file"
    assert rows["other"]["problem"].startswith(("has shape", "changes"))
    for name, (layout, rank, _) in FILES.items():
        row = rows[name]
        assert (row["problem"], row["layout"], row["ranks"]) == (None, layout, [rank, rank])
        assert row["bytes"] == (folder / f"{name}.safetensors").stat().st_size
        assert set(row["targets"]) == {"unet", "text_encoder"}
        assert row["family"] == "Stable Diffusion 1.x"


@pytest.mark.parametrize("many", [{"_FILES": 1}, {"_BYTES": 1}], ids=["files", "bytes"])
def test_a_list_of_many_files_reads_for_some_time(
    own: tuple[Models, Path],
    folders: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    many: dict[str, int],
) -> None:
    from tessera.adapters import overview

    _, folder = own
    shutil.copytree(folders("sd15") / "adapters", folder)
    (folder / "torn.safetensors").write_bytes(b"")
    monkeypatch.setattr(overview, "_READS_S", 0.0)
    for name, value in many.items():
        monkeypatch.setattr(overview, name, value)
    listed = overview.Overview(Bundle(folder.parent))

    def known() -> list[str]:
        rows = listed.rows()
        assert [row["name"] for row in rows] == ["a", "b", "c", "torn"]
        return [row["name"] for row in rows if row["family"] or row["problem"]]

    assert known() == ["a"]
    assert known() == ["a", "b"]
    monkeypatch.setattr(overview, "_READS_S", 60.0)
    assert known() == ["a", "b", "c", "torn"]


def test_a_list_of_few_files_is_whole_however_slow_the_machine(
    own: tuple[Models, Path], folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tessera.adapters import overview

    _, folder = own
    shutil.copytree(folders("sd15") / "adapters", folder)
    monkeypatch.setattr(overview, "_READS_S", 0.0)
    assert all(row["family"] for row in overview.Overview(Bundle(folder.parent)).rows())


def test_a_lora_of_another_family(own: tuple[Models, Path], folders: Callable[[str], Path]) -> None:
    models, folder = own
    folder.mkdir()
    shutil.copy(folders("sdxl") / "adapters" / "b.safetensors", folder)
    with pytest.raises(Refused) as caught:
        models.generate(**COMMON, LORAS=loras(("b", 1.0)))
    assert str(caught.value).startswith(
        "LORAS[0].name is 'b'; accepted: a LoRA that fits this bundle; this file "
    )
    assert "Stable Diffusion 1.x" in str(caught.value)

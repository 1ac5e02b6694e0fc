"""Files of textual inversion, in the forms in which people have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tessera.adapters.inversion import Inversions
from tessera.manifest import ADAPTERS

WIDTH = 6
TWO = torch.arange(2.0 * WIDTH).view(2, WIDTH)
WEBUI = {"string_to_token": {"*": 265}, "string_to_param": {"*": TWO}, "name": "old", "step": 5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ADAPTERS).mkdir()
    return tmp_path / ADAPTERS


def opened(folder: Path, *widths: int) -> Inversions:
    return Inversions(folder.parent, [], widths or (WIDTH,))


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("learned_embeds.safetensors", {"<cat-toy>": TWO}, "<cat-toy>"),
        ("learned_embeds.bin", {"<cat-toy>": TWO}, "<cat-toy>"),
        ("Easy.safetensors", {"emb_params": TWO.half()}, "Easy"),
        ("easy.pt", WEBUI, "easy"),
        ("bare.pt", TWO, "bare"),
    ],
    ids=["diffusers", "diffusers pickled", "webui", "webui pickled", "tensor"],
)
def test_forms_of_files(folder: Path, file: str, content: Any, word: str) -> None:
    save = save_file if file.endswith(".safetensors") else torch.save
    save(content, folder / file)
    words = opened(folder).words()
    assert words.found_in(f"a {word}") == [word.lower()]
    assert torch.equal(words.vectors[0], TWO)


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
@pytest.mark.parametrize("end", ["safetensors", "pt"])
def test_vectors_of_both_encoders_of_xl(folder: Path, names: tuple[str, str], end: str) -> None:
    save = save_file if end == "safetensors" else torch.save
    save({names[1]: torch.ones(2, 4), names[0]: TWO}, folder / f"style.{end}")
    (known,) = opened(folder, WIDTH, 4).files()
    assert (known.word, known.problem) == ("style", "")
    assert [tuple(each.shape) for each in known.vectors] == [(2, WIDTH), (2, 4)]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("wide.safetensors", {"emb_params": torch.ones(1, 9)}, "width 9; accepted: 6"),
        ("xl.safetensors", {"clip_g": TWO, "clip_l": TWO + 1}, "width 6 and 6; accepted: 6"),
        ("flat.safetensors", {"emb_params": torch.ones(1, 2, 3)}, "has no vectors"),
        ("other.pt", {"state": {}, "optimizer": {}}, "no file of textual inversion"),
        ("evil.pt", {"string_to_param": Evil()}, "is a pickle with more than tensors in it"),
        (
            "onetrainer.safetensors",
            {"clip_l": TWO, "clip_l_out": TWO + 1},
            "has vectors for a text encoder's output; accepted: those of words",
        ),
    ],
    ids=["width", "xl", "shape", "other", "code", "outputs"],
)
def test_what_cannot_be_used(
    folder: Path,
    file: str,
    content: Any,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    save = save_file if file.endswith(".safetensors") else torch.save
    save(content, folder / file)
    inversions = opened(folder)
    (known,) = inversions.files()
    assert problem in known.problem
    assert not inversions.words().places
    assert not (folder / "evil").exists()


def test_other_files_are_not_taken_for_one(folder: Path) -> None:
    down = "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"
    save_file({down: TWO}, folder / "lora.safetensors")
    save_file({name: TWO.clone() for name in "abc"}, folder / "three.safetensors")
    (folder / "broken.safetensors").write_bytes(b"nothing")
    assert opened(folder).files() == []


def test_files_may_come_and_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.adapters.inversion._LISTED_S", 0.0)
    inversions = opened(folder)
    assert inversions.words().found_in("a word") == []
    save_file({"emb_params": TWO}, folder / "word.safetensors")
    assert inversions.words().found_in("a word") == ["word"]
    (folder / "word.safetensors").unlink()
    assert inversions.words().found_in("a word") == []


def test_a_bundle_of_an_older_builder_has_no_words(folder: Path) -> None:
    save_file({"emb_params": TWO}, folder / "word.safetensors")
    inversions = Inversions(folder.parent, [], ())
    assert not inversions.words().places
    assert "older bundle" in inversions.files()[0].problem


def test_a_file_may_be_written_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, so that its directory does not change."""
    monkeypatch.setattr("tessera.adapters.inversion._LISTED_S", 0.0)
    inversions = opened(folder)
    path = folder / "word.safetensors"
    save_file({"one": TWO}, path)
    assert inversions.words().found_in("one two") == ["one"]
    save_file({"two": TWO}, folder / "other.safetensors")
    content = (folder / "other.safetensors").read_bytes()
    (folder / "other.safetensors").unlink()
    assert inversions.words().found_in("one two") == ["one"]
    path.write_bytes(content)
    assert inversions.words().found_in("one two") == ["two"]

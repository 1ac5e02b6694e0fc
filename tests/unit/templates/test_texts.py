"""Prompts of recordings: their ids, and their embeddings on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tessera.templates.store import TemplateStore
from tessera.templates.texts import ZEROED, Texts, text_id, zeroed
from tests.samples.templates import filled, key_of

TEXT = {"hidden": torch.randn(3, 2), "pooled": torch.randn(4)}


@pytest.mark.parametrize("blank", ["", "  "])
def test_the_empty_prompt_has_no_id(blank: str) -> None:
    assert text_id(blank, syntax="plain", clip_skip=2) == ""


def test_ids_differ_by_everything_that_changes_the_embeddings() -> None:
    ids = [
        text_id("a star"),
        text_id("a  star"),
        text_id("a star", syntax="plain"),
        text_id("a star", clip_skip=1),
        text_id("a star", words=["star"]),
        text_id("a star", loras=[("abc", 1.0)]),
        text_id("a star", loras=[("abc", 0.5)]),
    ]
    assert len(set(ids)) == len(ids)
    assert text_id("a star", words=["b", "a"]) == text_id("a star", words=["a", "b"])


def test_zeros_have_an_id_that_no_prompt_has() -> None:
    assert ZEROED not in ("", text_id("a star"))
    assert len(ZEROED) == len(text_id("a star"))
    zeros = zeroed(TEXT)
    assert {name: found.shape for name, found in zeros.items()} == {
        "hidden": (3, 2),
        "pooled": (4,),
    }
    assert not any(found.any() for found in zeros.values())


def test_what_was_put_is_found_again(tmp_path: Path) -> None:
    texts = Texts(tmp_path)
    assert texts.get("one") is None
    texts.put("one", {**TEXT, "hidden": TEXT["hidden"].T})  # not contiguous
    texts.put("one", TEXT)  # it is there
    found = texts.get("one")
    assert found is not None
    assert torch.equal(found["hidden"], TEXT["hidden"].T)
    (tmp_path / "one.safetensors").write_bytes(b"damaged")
    assert texts.get("one") is None


def test_only_what_is_old_and_not_used_is_removed(tmp_path: Path) -> None:
    texts = Texts(tmp_path)
    for name in ("new", "used", "old", "wanted again"):
        texts.put(name, TEXT)
    for name in ("used", "old", "wanted again"):
        os.utime(tmp_path / f"{name}.safetensors", (0, 0))
    texts.put("wanted again", TEXT)
    texts.sweep(lambda name: name == "used", 60)
    assert {path.stem for path in tmp_path.iterdir()} == {"new", "used", "wanted again"}


def test_what_recordings_and_notes_are_compared_by_is_kept(store: TemplateStore) -> None:
    """The empty prompt's text, too, as long as one of a prompt is there."""
    first, second = key_of("t"), key_of("u")
    own = {key: key.with_text("1" * 16) for key in (first, second)}
    gone, noted = first.with_text("2" * 16), first.with_text("3" * 16)
    for key in (first, second, *own.values(), gone, noted):
        store.texts.put(key.digest, TEXT)
    store.notes.put(noted)
    for path in (store.root / "texts").iterdir():
        os.utime(path, (0, 0))
    recording = filled(store, own[first])
    kept = {first.digest, own[first].digest, noted.digest}
    assert {path.stem for path in (store.root / "texts").iterdir()} == kept
    store.remove(recording)
    filled(store, second)
    assert {path.stem for path in (store.root / "texts").iterdir()} == {noted.digest}

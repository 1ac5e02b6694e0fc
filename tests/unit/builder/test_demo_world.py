"""The demo model's world: scenes, renderer, checker, tokenizer."""

from __future__ import annotations

import dataclasses
import itertools
import random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tessera_build.demo import draw
from tessera_build.demo.checker import Score, look, score
from tessera_build.demo.scenes import (
    COLOURS,
    PATTERNS,
    POSITIONS,
    REACH,
    SHAPES,
    SIZES,
    Item,
    Scene,
    describe,
    held_out_scenes,
    paraphrase,
    sample_scene,
    vocabulary,
)
from tessera_build.demo.sheets import contact_sheet
from tessera_build.demo.tokenizer import build_tokenizer

SEEDS = st.integers(0, 10**6)


def bare(scene: Scene) -> Scene:
    """A scene without the shifts that no word names, items in no order."""
    items = [dataclasses.replace(i, dx=0.0, dy=0.0) for i in scene.items]
    return dataclasses.replace(scene, items=tuple(sorted(items, key=repr)))


@given(seed=SEEDS)
def test_the_checker_reads_back_what_the_renderer_draws(seed: int) -> None:
    scene = sample_scene(random.Random(seed))
    assert bare(look(draw.render(scene))) == bare(scene)


def test_the_checker_is_not_fooled_by_a_little_noise() -> None:
    rng = np.random.default_rng(0)
    scenes = held_out_scenes(60)
    noisy = [draw.render(s) + rng.normal(0, 0.03, (128, 128, 3)) for s in scenes]
    scores = [score(np.clip(p, 0, 1), s) for p, s in zip(noisy, scenes, strict=True)]
    assert Score.total(scores).fraction > 0.99


def test_the_wrong_picture_scores_like_chance() -> None:
    scenes = held_out_scenes(60)
    scores = [score(draw.render(a), b) for a, b in itertools.pairwise(scenes)]
    assert 0.1 < Score.total(scores).fraction < 0.35


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"shape": "star"}, "shape"),
        ({"colour": "green"}, "colour"),
        ({"size": "small"}, "size"),
        ({"position": "bottom right"}, "position"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_one_wrong_attribute_costs_one_point(change: dict[str, str], wrong: str) -> None:
    item = Item("circle", "red", "large", "left")
    asked = Scene((item,), "blue", "striped")
    shown = Scene((dataclasses.replace(item, **change),), "blue", "striped")  # type: ignore[arg-type]
    right = score(draw.render(shown), asked).right
    assert {key for key, (r, n) in right.items() if r < n} == {wrong}


def test_missing_and_extra_items_are_counted() -> None:
    one = Scene((Item("circle", "red", "large", "left"),), "blue")
    two = Scene((*one.items, Item("star", "white", "small", "right")), "blue")
    assert score(draw.render(one), two).right["count"] == (0, 1)
    assert score(draw.render(one), two).right["shape"] == (1, 2)
    assert score(draw.render(two), one).right["count"] == (0, 1)
    assert score(draw.render(two), one).right["shape"] == (1, 1)


@given(seed=SEEDS)
def test_items_do_not_touch_and_differ_from_the_ground(seed: int) -> None:
    scene = sample_scene(random.Random(seed))
    masks = [draw.item_mask(item) > 0 for item in scene.items]
    assert not np.logical_and.reduce(masks).any() or len(masks) == 1
    assert scene.background not in {item.colour for item in scene.items}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_one_size_have_one_area(shape: str) -> None:
    for radius in SIZES.values():
        area = draw.shape_mask(shape, (64, 64), radius).sum()
        # Pillow fills a polygon's outline, too: half a (sub)pixel all around.
        assert area == pytest.approx(np.pi * (radius + 0.2) ** 2, rel=0.03)
    assert max(np.hypot(x, y) for x, y in draw.outline(shape)) == pytest.approx(
        REACH[shape], abs=0.01
    )


def test_colours_and_their_shades_are_told_apart() -> None:
    for colour in COLOURS:
        for pattern in PATTERNS:
            found = look(draw.background(colour, pattern))
            assert (found.background, found.pattern, found.items) == (colour, pattern, ())


def test_prompts() -> None:
    item = Item("star", "orange", "small", "top left")
    assert (
        describe(Scene((item,), "blue", "striped"))
        == "a small orange star at the top left on a striped blue background"
    )
    other = Item("circle", "red", "large", "center")
    assert (
        describe(Scene((item, other), "orange"))
        == "a small orange star at the top left and a large red circle in the center"
        " on an orange background"
    )


@given(seed=SEEDS)
def test_prompts_use_the_vocabulary(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng)
    for prompt in (describe(scene), paraphrase(scene, rng)):
        assert set(prompt.replace(",", " ,").split()) <= set(vocabulary())


def test_held_out_scenes_are_different_and_a_tenth() -> None:
    scenes = held_out_scenes(200)
    assert len({describe(s) for s in scenes}) == 200
    assert all(s.held_out for s in scenes)
    rng = random.Random(1)
    share = sum(sample_scene(rng).held_out for _ in range(3000)) / 3000
    assert 0.08 < share < 0.125
    moved = dataclasses.replace(scenes[0].items[0], dx=1.0)
    assert dataclasses.replace(scenes[0], items=(moved, *scenes[0].items[1:])).held_out


def test_every_word_is_one_token() -> None:
    tokenizer = build_tokenizer(vocabulary())
    for word in vocabulary():
        assert len(tokenizer(word).input_ids) == 3
    assert tokenizer.model_max_length == 77
    reordered = build_tokenizer(reversed(vocabulary()))
    assert reordered.get_vocab() == tokenizer.get_vocab()


@given(text=st.text(max_size=30))
def test_any_text_has_tokens(text: str) -> None:
    assume("<|" not in text)  # the names of special tokens are those tokens
    tokenizer = build_tokenizer(vocabulary())
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]


def test_contact_sheets_lay_pictures_in_rows() -> None:
    pictures = [np.full((10, 20, 3), v, np.float32) for v in (0.0, 0.5, 1.0)]
    sheet = contact_sheet(pictures, columns=2)
    assert sheet.size == (2 * 24 + 4, 2 * 14 + 4)
    assert [sheet.getpixel(p) for p in ((10, 8), (34, 8), (10, 22))] == [
        (0, 0, 0),
        (128, 128, 128),
        (255, 255, 255),
    ]


def test_positions_are_nine_and_apart() -> None:
    assert len(set(POSITIONS.values())) == 9

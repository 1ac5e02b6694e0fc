"""Which recordings an edit takes, by its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tessera.plan import ControlUse
from tessera.templates import nearest
from tessera.templates.keys import RecordedControl, recorded_controls
from tessera.templates.nearest import Nearness, choose, distance
from tessera.templates.storage import Storage
from tessera.templates.store import RecordingKey, TemplateStore
from tessera.templates.texts import ZEROED
from tessera.types import Tensors

KEY = RecordingKey("bundle", "t", "euler", 2, 1)
OWN, OTHER, NEGATIVE = "1" * 16, "2" * 16, "3" * 16


@pytest.fixture
def store(tmp_path: Path) -> TemplateStore:
    return TemplateStore(tmp_path, budget=10**9)


def told(x: float, y: float) -> torch.Tensor:
    """Embeddings (tokens, width) of a prompt whose mean is (x, y)."""
    return torch.tensor([[x - 1, y], [x + 1, y]])


def recorded(
    store: TemplateStore,
    text: str,
    hidden: torch.Tensor,
    controls: tuple[RecordedControl, ...] = (),
) -> None:
    key = KEY.with_text(text).with_controls(controls)
    store.texts.put(key.digest, {"hidden": hidden, "pooled": torch.zeros(1)})
    store.record(key, Storage("float32"), [(0, {}), (1, {})])


def conditions(*rows: torch.Tensor) -> Tensors:
    return {"encoder_hidden_states": torch.stack(rows)}


def texts_of(store: TemplateStore, texts: Sequence[str], *rows: torch.Tensor) -> object:
    chosen = choose(store, KEY, texts, conditions(*rows))
    if chosen is None:
        return None
    return [r.key.text for r in chosen.recordings], chosen.branches, chosen.nearness


def test_without_recordings_there_is_nothing_to_choose(store: TemplateStore) -> None:
    assert texts_of(store, ("", OWN), told(0, 0), told(1, 0)) is None
    recorded(store, OWN, told(1, 0))  # the negative branch has none
    assert texts_of(store, ("", OWN), told(0, 0), told(1, 0)) is None


def test_branches_share_the_recording_of_the_empty_prompt(store: TemplateStore) -> None:
    recorded(store, "", told(0, 0))
    rows = told(0, 0), told(1, 0)
    assert texts_of(store, ("", OWN), *rows) == ([""], (2,), Nearness.EMPTY)
    assert texts_of(store, (), *rows) == ([""], (2,), Nearness.EMPTY)
    assert texts_of(store, ("",), told(0, 0)) == ([""], (1,), Nearness.OWN)


def test_its_own_prompt_comes_first(store: TemplateStore) -> None:
    for text, hidden in (("", told(0, 0)), (OTHER, told(1, 0)), (OWN, told(1, 0.5))):
        recorded(store, text, hidden)
    rows = told(0, 0), told(1, 0)  # the other one is nearer
    assert texts_of(store, ("", OWN), *rows) == (["", OWN], (1, 1), Nearness.OWN)
    assert texts_of(store, (OWN, OWN), *rows) == ([OWN], (2,), Nearness.OWN)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [(1.0, 0.79, OTHER), (1.0, 0.81, ""), (-1.0, 0.0, ""), (0.5, 0.1, OTHER)],
    ids=["near", "far", "opposite", "nearer than the empty one"],
)
def test_another_prompt_serves_if_it_is_near(
    store: TemplateStore, x: float, y: float, expected: str
) -> None:
    """The edit's prompt is 1 away from the empty one."""
    recorded(store, "", told(0, 0))
    recorded(store, OTHER, told(x, y))
    kind = Nearness.NEAR if expected else Nearness.EMPTY
    texts = ["", OTHER] if expected else [""]
    branches = (1, 1) if expected else (2,)
    found = texts_of(store, ("", OWN), told(0, 0), told(1, 0))
    assert found == (texts, branches, kind)


def test_zeros_are_near_to_nothing(store: TemplateStore) -> None:
    """Before they are recorded they take the empty prompt's, which is not their own."""
    recorded(store, "", told(0, 0.1))
    recorded(store, OTHER, told(0, 0.02))
    rows = told(0, 0), told(0, 0.02)
    assert texts_of(store, (ZEROED, OTHER), *rows) == (["", OTHER], (1, 1), Nearness.EMPTY)
    recorded(store, ZEROED, told(0, 0))
    assert texts_of(store, (ZEROED, OTHER), *rows) == ([ZEROED, OTHER], (1, 1), Nearness.OWN)
    assert texts_of(store, (OWN,), told(0, 0)) == ([OTHER], (1,), Nearness.NEAR)


def test_the_nearest_of_several_is_taken(store: TemplateStore) -> None:
    recorded(store, "", told(0, 0))
    recorded(store, NEGATIVE, told(1, 0.5))
    recorded(store, OTHER, told(1, 0.2))
    found = texts_of(store, ("", OWN), told(0, 0), told(1, 0))
    assert found == (["", OTHER], (1, 1), Nearness.NEAR)


def test_one_whose_recording_is_gone_or_whose_text_is_damaged_does_not_serve(
    store: TemplateStore,
) -> None:
    recorded(store, "", told(0, 0))
    recorded(store, OTHER, told(1, 0.2))
    (store.root / "texts" / f"{KEY.with_text(OTHER).digest}.safetensors").write_bytes(b"x")
    nearest._vector.cache_clear()
    found = texts_of(store, ("", OWN), told(0, 0), told(1, 0))
    assert found == ([""], (2,), Nearness.EMPTY)


def test_fast_edits_take_the_empty_prompts_if_it_is_there(store: TemplateStore) -> None:
    rows = conditions(told(0, 0), told(1, 0))
    recorded(store, OWN, told(1, 0))
    recorded(store, NEGATIVE, told(0, 1))
    alone = choose(store, KEY, (NEGATIVE, OWN), rows, plain=True)
    assert alone is not None
    assert alone.nearness is Nearness.OWN
    recorded(store, "", told(0, 0))
    chosen = choose(store, KEY, (NEGATIVE, OWN), rows, plain=True)
    assert chosen is not None
    assert ([r.key.text for r in chosen.recordings], chosen.branches) == ([""], (2,))


def test_a_distance_is_relative_to_that_from_the_empty_prompt() -> None:
    empty, text, other = torch.zeros(2), torch.tensor([2.0, 0.0]), torch.tensor([2.0, 1.0])
    assert distance(text, other, empty) == 0.5
    assert distance(text, empty, empty) == 1
    assert distance(empty, other, empty) == float("inf")


EDGES = recorded_controls([ControlUse("edges", 1.0, 0.0, 1.0, image="0a")], range(2))
GUESSED = recorded_controls([ControlUse("edges", 1.0, 0.0, 1.0, guess_mode=True)], range(2))
ROWS = told(0, 0), told(1, 0)


def chosen_of(store: TemplateStore, key: RecordingKey) -> object:
    chosen = choose(store, key, ("", OWN), conditions(*ROWS), guided=True)
    if chosen is None:
        return None
    found = [(r.key.text, bool(r.key.controls)) for r in chosen.recordings]
    return found, chosen.nearness, chosen.with_controls


def test_of_equally_near_prompts_the_one_with_its_controlnets_is_taken(
    store: TemplateStore,
) -> None:
    key = KEY.with_controls(EDGES)
    assert chosen_of(store, key) is None
    recorded(store, "", told(0, 0))
    assert chosen_of(store, key) == ([("", False)], Nearness.EMPTY, False)
    assert chosen_of(store, KEY) == ([("", False)], Nearness.EMPTY, None)
    recorded(store, "", told(0, 0), EDGES)
    assert chosen_of(store, key) == ([("", True)], Nearness.EMPTY, True)
    plain = choose(store, key, ("", OWN), conditions(*ROWS), plain=True)
    assert plain is not None
    assert plain.with_controls is False, "`fast` takes what it took before"
    recorded(store, OWN, told(1, 0))
    assert chosen_of(store, key) == ([("", False), (OWN, False)], Nearness.OWN, False)
    recorded(store, OWN, told(1, 0), EDGES)
    assert chosen_of(store, key) == ([("", True), (OWN, True)], Nearness.OWN, True)
    assert chosen_of(store, KEY) == ([("", False), (OWN, False)], Nearness.OWN, None)


def test_the_negative_branch_takes_one_without_what_leaves_it_alone(store: TemplateStore) -> None:
    key = KEY.with_controls(GUESSED)
    recorded(store, OWN, told(1, 0), GUESSED)
    assert chosen_of(store, key) is None
    recorded(store, "", told(0, 0))
    assert chosen_of(store, key) == ([("", False), (OWN, True)], Nearness.OWN, True)


def test_regions_take_what_is_nearest_to_each(store: TemplateStore) -> None:
    """Neighbours share a recording. A prompt that nobody has recorded takes the empty one's."""
    recorded(store, "", told(0, 0))
    recorded(store, OWN, told(1, 0))
    texts = ("", OWN, OWN, NEGATIVE, "")
    rows = [told(0, 0), told(1, 0), told(1, 0), told(0, 1), told(0, 0)]
    found = texts_of(store, texts, *rows)
    assert found == (["", OWN, ""], (1, 2, 2), Nearness.EMPTY)

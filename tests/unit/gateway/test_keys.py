"""The file of keys, and their limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tessera_gateway.keys import (
    ANYONE,
    Key,
    Keyring,
    KeysError,
    LimitReached,
    digest_of,
    make_key,
    refusal,
)


def test_a_made_key_is_found_and_no_other(tmp_path: Path) -> None:
    (alice, first), (bob, second) = make_key("alice"), make_key("bob")
    assert alice != bob
    assert alice not in first
    file = tmp_path / "keys.toml"
    file.write_text(first + second + "priority = 1\n")
    keyring = Keyring(file)
    assert not keyring.open
    found = keyring.find(bob)
    assert found
    assert (found.name, found.priority, found.in_flight) == ("bob", 1, None)
    for wrong in ("", bob[:-1], bob + "x", bob.upper(), digest_of(bob), "\udcff"):
        assert keyring.find(wrong) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("keys = 1", "keys: Input should be a valid list"),
        ("[[keys", "Expected"),
        ('[[keys]]\nname = "a"\n', "keys.0.sha256: Field required"),
        ('[[keys]]\nname = "a"\nsha256 = "secret"\n', "keys.0.sha256: String should match"),
        (make_key("a")[1] + "limit = 1\n", "keys.0.limit: Extra inputs are not permitted"),
        (make_key("a")[1] + "in_flight = 0\n", "keys.0.in_flight"),
        (make_key("a")[1] + make_key("a")[1], "two keys have the name a"),
    ],
    ids=["type", "toml", "missing", "no digest", "unknown", "limit", "twice"],
)
def test_a_bad_file_is_named(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(KeysError) as raised:
        Keyring(file)
    assert sentence in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"keys\.toml"):
        Keyring(tmp_path / "keys.toml")


def test_a_bad_file_leaves_the_keys_as_they_were(tmp_path: Path) -> None:
    token, lines = make_key("alice")
    file = tmp_path / "keys.toml"
    file.write_text(lines)
    keyring = Keyring(file)
    file.write_text("keys = 1")
    with pytest.raises(KeysError):
        keyring.reload()
    assert keyring.find(token)
    file.write_text("keys = []")
    assert keyring.reload() == 0
    assert keyring.find(token) is None


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def key(**limits: Any) -> Key:
    return Key(name="alice", sha256="0" * 64, **limits)


def test_templates_are_the_operators() -> None:
    for action in ("list", "evict", "picture", "", "Register"):
        reason = refusal(key(), "templates", action)
        assert reason == (
            f"ACTION is {action!r}; accepted: register with key alice, and every ACTION with an "
            "operator's key"
        )
        assert refusal(key(operator=True), "templates", action) is None
        assert refusal(ANYONE, "templates", action) is None
    assert refusal(key(), "templates", "register") is None
    assert refusal(key(), "adapters", "list") is None


def test_the_load_is_the_operators() -> None:
    """It has the ids of everybody's jobs and templates."""
    for action in ("load", "", "Status"):
        assert refusal(key(), "jobs", action) == (
            f"ACTION is {action!r}; accepted: status, cancel, preview with key alice, and every "
            "ACTION with an operator's key"
        )
        assert refusal(key(operator=True), "jobs", action) is None
        assert refusal(ANYONE, "jobs", action) is None
    for action in ("status", "cancel", "preview"):
        assert refusal(key(), "jobs", action) is None


def test_pictures_in_flight_are_limited() -> None:
    keyring, alice = Keyring(), key(in_flight=3)
    with keyring.turn(alice, 2):
        with keyring.turn(alice, 1), pytest.raises(LimitReached), keyring.turn(alice, 1):
            pass
        with keyring.turn(alice, 1):
            pass
    with pytest.raises(ZeroDivisionError), keyring.turn(alice, 3):
        raise ZeroDivisionError
    with keyring.turn(alice, 3):
        pass


def test_pictures_within_a_minute_are_limited() -> None:
    clock = Clock()
    keyring, alice = Keyring(clock=clock), key(per_minute=3)
    for pictures, after in ((1, 10.0), (2, 20.0)):
        with keyring.turn(alice, pictures):
            clock.now += after
    with pytest.raises(LimitReached) as raised, keyring.turn(alice, 1):
        pass
    assert raised.value.seconds == 60.0 - 30.0
    with pytest.raises(LimitReached) as raised, keyring.turn(alice, 2):
        pass
    assert raised.value.seconds == 70.0 - 30.0
    clock.now += raised.value.seconds
    with keyring.turn(alice, 3):
        pass

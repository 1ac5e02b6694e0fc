"""Pictures behind URLs: for a while, and not too many."""

from __future__ import annotations

from starlette.testclient import TestClient

from tessera_gateway.kept import KeptPictures


def test_pictures_end_and_make_room() -> None:
    now = [0.0]
    kept = KeptPictures(seconds=10, budget=5, clock=lambda: now[0])
    first = kept.put(b"abc", "image/png")
    assert len(first) > 40
    assert kept.get(first)
    second = kept.put(b"def", "image/png")
    assert kept.get(first) is None
    now[0] = 9.0
    assert kept.get(second)
    now[0] = 10.0
    assert kept.get(second) is None
    assert kept.get(kept.put(b"larger than all", "image/png")) is None


def test_a_url_of_no_picture_is_not_found(http: TestClient) -> None:
    answer = http.get("/pictures/abc")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")

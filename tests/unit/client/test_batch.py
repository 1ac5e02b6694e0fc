"""`tessera batch` with a fake transport behind it."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tessera.errors import InvalidInput
from tessera_client import Client, cli, cli_batch, connection
from tests.fakes.transport import FakeTransport
from tests.samples.waiting import PATIENCE_S

run = CliRunner()


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    fake = FakeTransport()
    monkeypatch.setattr(connection, "connect", lambda address: fake)
    return fake


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "requests.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def called(requests: Path, out: Path) -> Any:
    return run.invoke(cli.app, ["batch", str(requests), "-o", str(out)])


def test_each_line_becomes_a_picture(transport: FakeTransport, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photo.png")
    requests = written(
        tmp_path,
        {"prompt": "a", "seed": 1, "out": "one/a.png"},
        "",
        {"prompt": "b", "seed": 2, "loras": ["ink"]},
        {"prompt": "c", "seed": 3, "image": "photo.png", "mask": [0, 0, 8, 8], "mode": "dense"},
        {"prompt": "d", "controls": [{"name": "edges", "image": "photo.png"}], "width": 8},
    )
    result = called(requests, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "4 drawn, 0 failed" in result.output
    files = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert files == ["0003.png", "0004.png", "0005.png", "one/a.png"]
    drawn = {call["PROMPT"]: call for call in transport.sent("generate")}
    assert drawn.keys() == {b"a", b"b", b"d"}
    assert json.loads(drawn[b"b"]["LORAS"])[0]["name"] == "ink"
    assert "CONTROL_IMAGES" in drawn[b"d"]
    (edited,) = transport.sent("edit")
    assert (edited["PROMPT"], edited["SEED"], edited["MODE"]) == (b"c", 3, b"dense")


def test_what_is_there_is_left_out(transport: FakeTransport, tmp_path: Path) -> None:
    requests = written(tmp_path, {"prompt": "a", "out": "a.png"}, {"prompt": "b"})
    (tmp_path / "a.png").write_bytes(b"whole")
    result = called(requests, tmp_path)
    assert result.exit_code == 0
    assert "1 drawn, 0 failed, 1 were there" in result.output
    assert [call["PROMPT"] for call in transport.sent("generate")] == [b"b"]
    assert (tmp_path / "a.png").read_bytes() == b"whole"
    assert "0 drawn, 0 failed, 2 were there" in called(requests, tmp_path).output


def test_a_line_that_fails_leaves_the_others(
    transport: FakeTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = transport.infer

    def refusing(call: Any, timeout: float) -> Any:
        if call.model == "generate" and call.inputs["PROMPT"][0, 0] == b"bad":
            raise InvalidInput("STEPS", 0, "more")
        return infer(call, timeout)

    monkeypatch.setattr(transport, "infer", refusing)
    lines = [{"prompt": p} for p in ("good", "bad", "fine")] + [{"prompt": "x", "steps": 1.5}]
    result = called(written(tmp_path, *lines), tmp_path / "out")
    assert result.exit_code == 1
    assert "line 2: STEPS is 0; accepted: more" in result.output
    assert "line 4: steps is 1.5; accepted: an integer" in result.output
    assert "2 drawn, 2 failed" in result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0001.png", "0003.png"]


def test_pictures_are_not_kept(
    transport: FakeTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[weakref.ref[Any]] = []
    kept: list[int] = []
    generate, told = Client.generate, cli_batch._told

    def noted(*given: Any, **options: Any) -> Any:
        result = generate(*given, **options)
        drawn.append(weakref.ref(result))
        return result

    def counted(*given: Any) -> bool:
        if len(drawn) == 20:
            kept.append(sum(result() is not None for result in drawn))
        return told(*given)

    monkeypatch.setattr(Client, "generate", noted)
    monkeypatch.setattr(cli_batch, "_told", counted)
    requests = written(tmp_path, *[{"prompt": "a"}] * 20)
    assert called(requests, tmp_path / "out").exit_code == 0
    assert kept[-1] <= 8, "those under way"


def test_whoever_interrupts_it_begins_no_others(
    transport: FakeTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, first, second, over = list[bytes](), Event(), Event(), Event()
    infer = transport.infer

    def slow(call: Any, timeout: float) -> Any:
        if call.model == "jobs":
            over.set()
            second.wait(0.5)
        if call.model == "generate":
            begun.append(call.inputs["PROMPT"][0, 0])
            (second if first.is_set() else first).set()
            assert over.wait(PATIENCE_S)
        return infer(call, timeout)

    def interrupted(futures: Any) -> Any:
        assert first.wait(PATIENCE_S)
        raise KeyboardInterrupt

    monkeypatch.setattr(transport, "infer", slow)
    monkeypatch.setattr(cli_batch, "as_completed", interrupted)
    requests = written(tmp_path, *[{"prompt": p} for p in "abc"])
    result = run.invoke(
        cli.app, ["batch", str(requests), "-o", str(tmp_path / "out"), "--at-once", "1"]
    )
    assert result.exit_code != 0
    assert begun == [b"a"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"prompt": "good"}, "{"], "line 2 is no JSON"),
        (["[1]"], "line 1 is no JSON object"),
        (["", {"prompt": 3}], "line 2: prompt is 3; accepted: a text"),
        ([{"prompt": "a", "stepz": 3}], "line 1: 'stepz' is not a key; accepted: prompt, out"),
        ([{"prompt": "a", "mode": "dense"}], "line 1: 'mode' is not a key"),
        ([{"prompt": "a", "out": "../a.png"}], "out is '../a.png'"),
        ([{"prompt": "a", "out": "a.foo"}], "a.foo"),
        ([{"prompt": "a", "image": "no.png"}], "which is no file"),
        ([{"prompt": "a", "out": "0002.png"}, {"prompt": "b"}], "line 2: out is that of line 1"),
        ([""], "has no requests"),
    ],
)
def test_all_lines_are_read_before_anything_is_drawn(
    transport: FakeTransport, tmp_path: Path, lines: list[Any], said: str
) -> None:
    result = called(written(tmp_path, *lines), tmp_path)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert not transport.calls

"""Pictures against optimum's pipelines: the other process, and what is made of its answers."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors import safe_open

from bench.against_optimum import TESSERA, WARM, _table, measured, older, side
from bench.latency import PROMPT
from bench.server import DEMO_CHECKPOINT
from tests.samples.waiting import comes

SIDE = """
import json, sys
import numpy as np

print(json.dumps({"optimum": "2"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    np.save(request["file"], np.full((2, 2, 3), request["seed"], np.uint8))
    print(json.dumps({"seconds": 0.5}), flush=True)
"""


def test_a_process_draws(tmp_path: Path) -> None:
    script = tmp_path / "side.py"
    script.write_text(SIDE)
    with side([sys.executable, script, "kind"], 4) as (draw, versions):
        assert versions == {"optimum": "2"}
        for seed in (3, 7):
            took, picture = draw(seed)
            assert took == 500
            assert (picture == seed).all()


def test_one_that_spins_stands_still_until_its_turn(tmp_path: Path) -> None:
    script = tmp_path / "side.py"
    spins = (
        'import threading\nthreading.Thread(target=exec, args=("while True: pass",), daemon=True)'
    )
    script.write_text(f"{spins}.start()\n{SIDE}")

    with side([sys.executable, script], 4) as (draw, _):
        children = psutil.Process().children()
        (own,) = (each for each in children if str(script) in each.cmdline())
        for seed in (3, 7):
            comes(lambda: own.status() == psutil.STATUS_STOPPED)
            before = own.cpu_times().user
            time.sleep(0.5)
            assert own.cpu_times().user == before > 0
            draw(seed)


def test_one_that_ends_is_told(tmp_path: Path) -> None:
    script = tmp_path / "side.py"
    script.write_text("raise SystemExit(3)")
    with (
        pytest.raises(RuntimeError, match=r"openvino.* ended with status 3"),
        side([sys.executable, script, "openvino"], 4),
    ):
        pass


def test_sides_take_turns_and_the_first_pictures_do_not_count() -> None:
    asked: list[str] = []

    def drawing(name: str, ms: float, value: int) -> Any:
        def draw(seed: int) -> tuple[float, Any]:
            asked.append(name)
            return ms + seed, np.full((2, 2, 3), value, np.uint8)

        return draw

    sides = {TESSERA: drawing("ours", 100.0, 5), "other": drawing("other", 200.0, 2)}
    found = measured(sides, 2)
    assert asked == ["ours", "other", "other", "ours"] * 2
    first = float(WARM)
    assert found["samples_ms"][TESSERA] == [100 + first, 101 + first]
    assert found["largest_difference"] == {"other": 3}
    rows = _table(found | {"versions": {"other": {"optimum": "2"}}}).splitlines()
    assert rows[-1] == "| other | 202 ms | 0.51 (0.51-0.51) | 3 | optimum 2 |"


def test_the_older_form_says_the_same(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    folder = older(DEMO_CHECKPOINT, tmp_path / "older")
    there = {path.name for path in folder.iterdir()}
    assert there == {path.name for path in DEMO_CHECKPOINT.iterdir()}
    assert not (folder / "tokenizer" / "tokenizer.json").exists()
    now, then = (CLIPTokenizer.from_pretrained(f / "tokenizer") for f in (DEMO_CHECKPOINT, folder))
    assert then(PROMPT)["input_ids"] == now(PROMPT)["input_ids"]
    first = "text_model.embeddings.position_embedding.weight"
    with safe_open(folder / "text_encoder" / "model.safetensors", "pt") as file:
        assert first in file.keys()  # noqa: SIM118

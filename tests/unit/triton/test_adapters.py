"""`adapters` as Triton would load it: when its first list is prepared."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.calls import call, load
from tests.samples.waiting import comes


@pytest.mark.parametrize("large", [True, False])
def test_the_list_of_a_large_folder_is_prepared_at_the_start(
    xl_models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, large: bool
) -> None:
    folder = tmp_path / "loras"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.safetensors").write_bytes(b"")
    monkeypatch.setenv("TESSERA_ADAPTERS", str(folder))
    monkeypatch.setattr(load("adapters"), "_LARGE", 2 if large else 3)
    model = load("adapters").TritonPythonModel()
    model.initialize({})
    comes(lambda: all(each.name != "first list" for each in threading.enumerate()))
    assert ("_overview" in vars(model)) is large
    response = call(model, {"ACTION": np.array([[b"list"]], dtype=object)})
    answer = json.loads(response.arrays()["RESULT"].flat[0])
    assert [row["name"] for row in answer["adapters"]] == ["a", "b"]

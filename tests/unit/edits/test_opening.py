"""The step chooser that the processes of one server share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tessera.denoise.opening import open_unet
from tessera.denoise.tick import Controls
from tessera.edits import opening
from tessera.edits.chooser import Line, StepChooser
from tessera.edits.measured import Measured
from tessera.edits.quality import BUILT_IN, Policy
from tessera.edits.steps import SparseSteps
from tessera.engines.bundle import Bundle
from tessera.errors import BundleError
from tessera.shared.settings import ServerSettings, TemplateSettings
from tests.samples.bundles import Small
from tests.samples.edits import only


def test_a_replaced_process_knows_what_the_first_has_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSERA_BOARD", str(tmp_path / "board"))
    chooser = StepChooser(Line(0.0, 2.0), Line(3.0, 1.0))
    chooser.observe("sparse", (8, 8), 16, 50.0)
    measured: list[int] = []

    def measure_once() -> StepChooser:
        measured.append(1)
        return chooser

    costs = tmp_path / "board.costs"
    first = opening._remembered(costs, measure_once)
    second = opening._remembered(costs, measure_once)
    assert len(measured) == 1
    assert second == first == chooser
    assert second.cost("sparse", (8, 8), 16) == pytest.approx(50)


class NoControls(Controls):
    """ControlNets of requests without any."""

    def start(self, group: object) -> None:
        return None


def test_a_server_takes_the_policies_of_its_bundle_and_says_where_there_are_none(
    small: Callable[[str], Small], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_chooser", lambda *given: StepChooser(Line(0, 1), Line(0, 1)))
    folder = tmp_path / "bundle"
    folder.mkdir()
    for path in small("sd15").bundle.iterdir():
        (folder / path.name).symlink_to(path)
    bundle, said = Bundle(folder, threads=1), list[str]()
    dense = open_unet(bundle)
    unets = opening._open_unets(bundle, dense)
    monkeypatch.setattr(opening, "_open_unets", lambda *given: unets)
    settings = ServerSettings(
        folder, board=tmp_path / "board", templates=TemplateSettings(folder=tmp_path / "t")
    )

    def opened() -> SparseSteps:
        said.clear()
        steps, _ = opening.open_sparse(bundle, dense, NoControls(), settings, log=said.append)
        assert steps is not None
        return steps

    assert opened().policies == BUILT_IN
    assert sum("was not measured with this bundle" in each for each in said) == 1
    reached = only(Policy(2)).reached
    expected = {pair: [0.96] for pair in reached}
    path = Measured(bundle.manifest.digest, {}, [], reached, expected).write(folder)
    policies = opened().policies
    assert policies.measured
    assert policies.reached == reached
    assert not any("measured" in each for each in said)
    path.write_text("{")
    with pytest.raises(BundleError, match=r"edits\.json cannot be read"):
        opened()

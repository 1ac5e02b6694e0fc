"""Who answers is seen by others, and forgotten with its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tessera.shared.activity import Activity


def test_busy_is_seen_by_others_as_long_as_it_lasts(tmp_path: Path) -> None:
    first, second, watcher = (Activity(tmp_path / "lock") for _ in range(3))
    assert watcher.idle()
    with first.busy():
        assert not watcher.idle()
        with second.busy():
            assert not watcher.idle()
        assert not watcher.idle()
    assert watcher.idle()


def test_a_process_that_is_killed_is_not_busy(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tessera.shared.activity import Activity\n"
        "with Activity(Path(sys.argv[1])).busy(): print('busy', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"busy\n"
        watcher = Activity(tmp_path / "lock")
        assert not watcher.idle()
        process.kill()
        process.wait()
        assert watcher.idle()

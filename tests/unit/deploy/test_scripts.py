"""Shell scripts: shellcheck over all of them, and `deploy/verify-tensorrt.sh` with a docker that
only writes down what it is asked.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "deploy" / "verify-tensorrt.sh"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
SCRIPTS = sorted(
    path
    for folder in (".ci", "bench", "build", "client", "deploy", "examples", "python_backend")
    for path in (ROOT / folder).rglob("*")
    if path.suffix == ".sh" or path.parent.name == ".ci"
)
DOCKER = """#!/bin/bash
echo "$@" >> "$CALLS"
case "$*" in
    "$REFUSED"*) exit 1 ;;
    version*) echo 29.1.0 ;;
    "image inspect"*) echo 12345 ;;
    inspect*) echo healthy ;;
    "run --rm --gpus device=0 --read-only"*) exit 3 ;;
esac
"""
SMI = '#!/bin/bash\necho "NVIDIA H100, 615.61, 81559 MiB"\n'


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_shellcheck(script: Path) -> None:
    done = subprocess.run([str(SHELLCHECK), str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shellcheck_finds_faults(tmp_path: Path) -> None:
    script = tmp_path / "bad.sh"
    script.write_text("#!/bin/sh\nrm -r $1\n")
    done = subprocess.run([str(SHELLCHECK), str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "SC2086" in done.stdout


class Host:
    """A machine with a docker and an nvidia-smi that only write down what they are asked."""

    def __init__(self, folder: Path) -> None:
        self.calls_file = folder / "calls"
        self.programs = folder / "bin"
        self.work = folder / "work"
        self.programs.mkdir()
        self.calls_file.touch()
        self.add("docker", DOCKER)
        self.add("nvidia-smi", SMI)
        self.add("sleep", "#!/bin/bash\n")

    def add(self, name: str, text: str) -> None:
        (self.programs / name).write_text(text)
        (self.programs / name).chmod(0o755)

    def run(self, *words: str, refused: str = "none") -> subprocess.CompletedProcess[str]:
        path = f"{self.programs}:/usr/bin:/bin"
        variables = {"PATH": path, "CALLS": str(self.calls_file), "REFUSED": refused}
        line = [str(SCRIPT), "--work", str(self.work), *words]
        return subprocess.run(
            line, capture_output=True, text=True, env={**os.environ, **variables}, timeout=60
        )

    @property
    def calls(self) -> list[list[str]]:
        return [shlex.split(line) for line in self.calls_file.read_text().splitlines()]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_dry_run_prints_the_commands_and_runs_nothing(host: Host) -> None:
    done = host.run("--dry-run", "--triton", "26.08", "--only=versions")
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line.removeprefix("+ ")) for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["docker", "build"]] * 2 + [["docker", "run"]] * 2
    assert all("TRITON=26.08" in line for line in lines[:2])
    assert lines[3][-1] == "--only=versions"
    assert host.calls == []
    assert not host.work.exists()


def test_everything_is_called_and_the_report_is_named(host: Host) -> None:
    done = host.run("--only=versions")
    assert done.returncode == 3, "the status of the steps\n" + done.stderr
    assert f"send back {host.work}/out/tessera-tensorrt-report.tar.gz" in done.stdout
    stages = [c[c.index("--target") + 1] for c in host.calls if c[0] == "build"]
    assert stages == ["serve", "verify"]
    facts = dict(line.split(": ", 1) for line in (host.work / "host.txt").read_text().splitlines())
    assert facts["docker"] == "29.1.0"
    assert facts["GPU"].startswith("NVIDIA H100, 615.61")
    assert facts["image size"] == "12345 bytes"
    assert facts["read-only image"].startswith("healthy after")
    served = next(call for call in host.calls if "--detach" in call)
    assert ["rm", "--force", served[served.index("--name") + 1]] in host.calls


def test_containers_run_read_only_and_the_steps_not_as_root(host: Host) -> None:
    host.run("--only=versions")
    runs = [call for call in host.calls if call[0] == "run" and "--read-only" in call]
    assert len(runs) == 2
    assert all("--tmpfs" in call for call in runs)
    steps = runs[-1]
    user = steps[steps.index("--user") + 1]
    assert not user.startswith("0:")
    assert f"{host.work}:/checks" in steps


@pytest.mark.parametrize(
    ("refused", "sentence"),
    [
        ("info", "docker does not answer; start it"),
        ("build", "the image was not built"),
        ("run --rm --gpus device=0 --entrypoint", "install the NVIDIA Container Toolkit"),
    ],
    ids=["daemon", "build", "toolkit"],
)
def test_what_is_missing_is_told(host: Host, refused: str, sentence: str) -> None:
    done = host.run("--only=versions", refused=refused)
    assert done.returncode == 2
    assert done.stderr.startswith("verify-tensorrt.sh: ")
    assert sentence in done.stderr


def test_without_a_driver_it_says_so(host: Host) -> None:
    host.add("nvidia-smi", "#!/bin/bash\nexit 9\n")
    done = host.run()
    assert done.returncode == 2
    assert "is NVIDIA's driver loaded?" in done.stderr


def test_a_disk_that_is_too_small_is_told(host: Host) -> None:
    host.add("df", "#!/bin/bash\necho Avail; echo 7G\n")
    done = host.run()
    assert done.returncode == 2
    assert "has 7 GB free; 120 GB are needed" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--triton", "latest"], "--triton is 'latest'; accepted: a release such as 26.11"),
        (["--gpus"], "--gpus needs a value"),
    ],
)
def test_wrong_options_are_told(host: Host, words: list[str], sentence: str) -> None:
    done = host.run(*words)
    assert done.returncode == 2
    assert sentence in done.stderr

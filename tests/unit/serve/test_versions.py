"""Versions of tritonserver: which are refused, which are told, and flags that depend on them."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tessera.contract.limits import MAX_CONTROL_PIXELS, MAX_EDIT_SIDE, MAX_REGIONS
from tessera.manifest import Graph, Manifest
from tessera.serve import launch
from tessera.serve.launch import Launch
from tessera.serve.tritonserver import Ports, TritonServer, find_server
from tessera.serve.versions import (
    FLAGS,
    RELEASES,
    Support,
    UnsupportedServer,
    check_version,
    known_flags,
    largest_request,
    optional_flags,
    release_of,
    running_version,
    stated_version,
)
from tessera.shared.checked import CheckedFiles
from tessera.shared.settings import ServerSettings
from tessera.terminal.console import Console
from tests.samples.requests import MANIFEST

DOCS = Path(__file__).resolve().parents[3] / "docs"
MIB = 2**20


@pytest.mark.parametrize(
    ("version", "containers", "support"),
    [
        ("2.39.0", "up to 23.10", Support.REFUSED),
        ("2.50.0", "23.11 to 24.09", Support.UNTESTED),
        ("2.51.0", "24.10", Support.TESTED),
        ("2.59.1", "24.11 to 25.08", Support.UNTESTED),
        ("2.61.0", "25.09", Support.REFUSED),
        ("2.62.0dev", "25.10 and later", Support.UNTESTED),
        ("3.0", "25.10 and later", Support.UNTESTED),
    ],
)
def test_every_version_has_a_row(version: str, containers: str, support: Support) -> None:
    release = release_of(version)
    assert (release.containers, release.support) == (containers, support)


def test_rows_are_in_order_and_none_is_missed() -> None:
    firsts = [release.first for release in RELEASES]
    assert firsts == sorted(set(firsts))
    assert firsts[0] == (0, 0)


def test_containers_are_counted_like_versions() -> None:
    """25.09 has 2.61, and each month's container the next number; but 25.07 has 2.59.1."""
    for release in RELEASES[1:]:
        year, month = map(int, release.containers[:5].split("."))
        months = 12 * (year - 25) + month - 9
        assert release.first == (2, 61 + months + (months < -2)), release


def test_a_refused_version_is_told_with_its_reason_and_the_tested_one() -> None:
    sentence = (
        r"^tritonserver 2\.61\.0 \(container 25\.09\) is refused: its iterative sequences lose "
        r"their callback after a step; tested: 2\.51 \(container 24\.10\)$"
    )
    with pytest.raises(UnsupportedServer, match=sentence):
        check_version("2.61.0")


def test_an_untested_version_is_one_line_and_a_tested_one_nothing() -> None:
    line = "tritonserver 2.75.0 was not tested with Tessera; tested: 2.51 (container 24.10)"
    assert check_version("2.75.0") == line
    assert check_version("2.51.0") == ""


def test_what_is_no_version_is_told() -> None:
    with pytest.raises(UnsupportedServer, match="version 'latest'; accepted: two numbers"):
        check_version("latest")


def test_a_container_states_its_version_in_a_file(tmp_path: Path) -> None:
    server = TritonServer(tmp_path / "bin" / "tritonserver", None, {})
    assert stated_version(server) is None
    (tmp_path / "TRITON_VERSION").write_text("2.75.0\n")
    assert stated_version(server) == "2.75.0"


@pytest.fixture
def answers() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a server, and what it answers."""
    content: dict[str, str] = {"name": "triton", "version": "2.51.0"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", content
        server.shutdown()


def test_a_running_server_is_asked(answers: tuple[str, dict[str, str]]) -> None:
    url, content = answers
    assert running_version(url) == "2.51.0"
    content.pop("version")
    with pytest.raises(UnsupportedServer, match="does not tell its version"):
        running_version(url)


def test_a_refused_container_is_not_even_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "TRITON_VERSION").write_text("2.61.0")
    executable = tmp_path / "bin" / "tritonserver"
    monkeypatch.setattr(launch, "find_server", lambda folder: TritonServer(executable, None, {}))
    settings, files = ServerSettings(tmp_path), CheckedFiles(tmp_path, MANIFEST)
    refused = Launch(settings, MANIFEST, files, Ports(), "127.0.0.1", {}, [])
    with pytest.raises(UnsupportedServer, match="is refused"):
        refused.run(Console(stderr=True), timeout=1)


def test_the_wheels_server_tells_its_flags(tmp_path: Path) -> None:
    known = known_flags(find_server(tmp_path))
    assert {"help", "http-restricted-api", "strict-readiness", "load-model"} <= known
    assert optional_flags(known, MANIFEST) == [], "2.51 has none of them"


def test_a_server_without_help_gets_no_further_flags(tmp_path: Path) -> None:
    assert known_flags(TritonServer(tmp_path / "none", None, {})) == frozenset()


def of_size(max_size: int, **changes: object) -> Manifest:
    limits = dataclasses.replace(MANIFEST.limits, max_size=max_size)
    return dataclasses.replace(MANIFEST, limits=limits, **changes)  # type: ignore[arg-type]


def test_flags_are_set_for_the_largest_request_of_a_bundle() -> None:
    plain = of_size(512)
    known = {flag.name for flag in FLAGS}
    assert optional_flags(known, plain) == [
        f"--http-max-input-size={(1 + 11 * 64) * MIB}",
        "--allow-client-shm=false",
    ]
    large = of_size(8192)
    assert optional_flags({"http-max-input-size"}, large) == [
        f"--http-max-input-size={(1 + 4 * 11 * 64) * MIB}"
    ]


def test_the_largest_request_holds_a_picture_that_is_cropped_and_all_its_masks() -> None:
    assert largest_request(of_size(512)) > (3 + 1 + MAX_REGIONS) * MAX_EDIT_SIDE**2


def test_the_largest_request_holds_every_control_image() -> None:
    images = 3 * MAX_CONTROL_PIXELS
    having = of_size(512, graphs={"controlnet_edges": Graph("graph", "config")})
    assert largest_request(having) == largest_request(of_size(512)) + images


def test_operations_has_the_table() -> None:
    text = (DOCS / "operations.md").read_text()
    section = text[text.index("### Versions of Triton\n") :].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if re.match(r"\| (up to )?\d", line)
    ]
    assert rows == [[r.containers, _range(i), r.support, r.reason] for i, r in enumerate(RELEASES)]
    flags = {f.name: f.reason for f in FLAGS}
    assert all(f"`--{name}`" in section and reason in section for name, reason in flags.items())


def _range(index: int) -> str:
    """The versions of a row, as the page writes them."""
    first = RELEASES[index].first
    if index + 1 == len(RELEASES):
        return f"{first[0]}.{first[1]} and later"
    last = RELEASES[index + 1].first[1] - 1
    if not first[0]:
        return f"up to 2.{last}"
    return f"2.{first[1]}" if first[1] == last else f"2.{first[1]} to 2.{last}"

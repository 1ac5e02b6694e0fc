"""What README and docs say is so: links, commands and their options, tensors, errors, settings."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

import tessera_build.cli
import tessera_client
import tessera_client.cli
import tessera_gateway.cli
import tessera_gateway.fleet.cli
import tessera_gateway.fleet.picker
from bench.__main__ import BENCHES
from tessera import contract, errors
from tessera.serve.cli import serve
from tessera.shared.metrics import PREFIX, TABLE
from tessera_client.terminal import fail

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
GUIDES = [README, ROOT / "examples" / "README.md", *sorted(DOCS.rglob("*.md"))]
PAGES = [*GUIDES, ROOT / "CHANGELOG.md"]
MAX_README_LINES, MAX_WORDS = 170, 35

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ANY_LINE = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)


Command = TyperCommand | TyperGroup


def _command(app: typer.Typer) -> Command:
    command = typer.main.get_command(app)
    assert isinstance(command, Command)
    return command


def _serve() -> Command:
    app = typer.Typer(add_completion=False)
    app.command()(serve)
    return _command(app)


COMMANDS = {
    "tessera": _command(tessera_client.cli.app),
    "tessera-build": _command(tessera_build.cli.app),
    "tessera-fleet": _command(tessera_gateway.fleet.cli.app),
    "tessera-gateway": _command(tessera_gateway.cli.app),
    "tessera-picker": _command(tessera_gateway.fleet.picker.app),
    "tessera-serve": _serve(),
}


def _subcommand(group: Command, name: str) -> Command:
    assert isinstance(group, TyperGroup)
    assert name in group.commands, f"there is no command {name}"
    found = group.commands[name]
    assert isinstance(found, Command)
    return found


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _code(text: str) -> Iterator[str]:
    """Lines of code blocks, continued ones joined, and spans of code."""
    fenced = "\n".join(FENCE.findall(text))
    prose = FENCE.sub("", text)
    for block in (fenced, "\n".join(ANY_LINE.findall(prose))):
        yield from re.sub(r"\\\n\s*", "", block).splitlines()
    yield from SPAN.findall(prose)


def _calls(path: Path, *programs: str) -> list[list[str]]:
    """Command lines of these programs, split into words."""
    calls = []
    for line in _code(path.read_text()):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a span with half a quotation, or a line of a program
            continue
        if words and words[0].removeprefix(".venv/bin/") in programs:
            calls.append([words[0].removeprefix(".venv/bin/"), *words[1:]])
    return calls


def _options(command: Command) -> set[str]:
    options = (p for p in command.params if isinstance(p, TyperOption))
    return {name for p in options for name in (*p.opts, *p.secondary_opts)} | {"--help"}


def _headings(path: Path) -> set[str]:
    """Anchors that a page's headings have."""
    found = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


def _section(path: Path, title: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    match = re.search(rf"^(#+) {re.escape(title)}\n", path.read_text(), re.MULTILINE)
    assert match, f"{_name(path)} has no section {title!r}"
    rest = path.read_text()[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def _rows(text: str) -> Iterator[list[str]]:
    """Cells of every row of a page's tables."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def _first_cells(text: str) -> set[str]:
    """Code in the first cell of each row."""
    return {span for row in _rows(text) for span in SPAN.findall(row[0])}


def _sentences(text: str) -> Iterator[str]:
    """Sentences of a page's prose: no code, tables, headings or pictures."""
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", FENCE.sub("", text))
    text = SPAN.sub("code", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text))
    blocks = re.split(r"\n\s*\n|\n(?=- |\d+\. |\||#)", text)
    for block in blocks:
        if not block.lstrip("\n").startswith(("|", "#", "    ")):
            yield from re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(*])", " ".join(block.split()))


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(FENCE.sub("", path.read_text())):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link}: there is no such file"
        if anchor:
            assert anchor in _headings(target), f"{link}: there is no such heading"


def test_every_page_is_in_the_index() -> None:
    index = DOCS / "README.md"
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in LINK.findall(index.read_text())}
    assert set(DOCS.rglob("*.md")) - {index} == linked


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_commands_and_their_options_exist(path: Path) -> None:
    for program, *words in _calls(path, *COMMANDS):
        command = COMMANDS[program]
        while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
            command = _subcommand(command, words.pop(0))
        own = words[: words.index("--")] if "--" in words else words
        used = {word.partition("=")[0] for word in own if re.match(r"--?[a-z]", word)}
        assert used <= _options(command), f"{program} {' '.join(words)}"


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_make_targets_and_modules_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for _, *words in _calls(path, "make"):
        assert {word for word in words if "=" not in word} <= targets
    for _, *words in _calls(path, "python"):
        if words[:2] == ["-m", "bench"]:
            assert {"NAME", "quick", "all", *BENCHES}.issuperset(words[2:3]), words
        elif words[:1] == ["-m"]:
            assert (ROOT / f"{words[1].replace('.', '/')}.py").exists(), words[1]


@pytest.mark.parametrize("path", GUIDES, ids=_name)
def test_files_and_folders_that_code_names_exist(path: Path) -> None:
    """Those from the checkout's root; what a run writes is not there yet."""
    roots = "python_backend|build/tessera_build|build/demo_model|client|gateway"
    known = f"{roots}|bench|tests|examples|docs"
    for span in SPAN.findall(FENCE.sub("", path.read_text())):
        match = re.match(rf"(?:python )?((?:{known})/[\w./-]+)", span)
        if match and not match[1].startswith("bench/results"):
            assert (ROOT / match[1]).exists(), span


def test_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


def test_readme_has_short_sentences() -> None:
    long = [s for s in _sentences(README.read_text()) if len(s.split()) > MAX_WORDS]
    assert long == []


def _documented(model: str) -> tuple[set[contract.TensorSpec], set[contract.TensorSpec]]:
    """Inputs and outputs that the API reference gives a model."""
    inputs: set[contract.TensorSpec] = set()
    outputs: set[contract.TensorSpec] = set()
    text = _section(DOCS / "user" / "api.md", model)
    for name, dtype, *rest in _rows(text):
        if dtype in ("BYTES", "FP32", "INT32", "INT64", "UINT8"):
            shape, presence, *_ = rest
            parts = shape.strip("[]").split(",")
            dims = tuple(int(part) if part.isdigit() else -1 for part in parts)
            spec = contract.TensorSpec(name.strip("`"), dtype, dims, presence == "optional")
            (inputs if presence in ("optional", "required") else outputs).add(spec)
    if "All inputs of `generate`" in text:
        inputs |= _documented("generate")[0]
    return inputs, outputs


@pytest.mark.parametrize("model", contract.MODELS)
def test_the_reference_has_the_tensors_of_the_contract(model: str) -> None:
    spec = contract.MODELS[model]
    assert _documented(model) == (set(spec.inputs), set(spec.outputs))


def test_the_reference_has_the_models_of_the_contract() -> None:
    section = _section(DOCS / "user" / "api.md", "Models")
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == [
        "generate",
        "edit",
        "templates",
        "adapters",
        "jobs",
    ]
    assert set(contract.MODELS) == {"generate", "edit", "templates", "adapters", "jobs"}


def test_the_reference_has_every_field_of_info() -> None:
    rows = _rows(_section(DOCS / "user" / "api.md", "INFO"))
    named = [name for first, *_ in rows for name in SPAN.findall(first)]
    assert sorted(named) == sorted(f.name for f in dataclasses.fields(contract.Info))


def test_the_reference_has_every_field_of_a_jobs_status() -> None:
    section = _section(DOCS / "user" / "api.md", "jobs")
    (row,) = [cells for cells in _rows(section) if cells[0] == "`RESULT`"]
    named = SPAN.findall(row[-1])
    assert named == [f.name for f in dataclasses.fields(contract.JobStatus)]


def test_the_page_of_samplers_has_those_of_the_contract() -> None:
    page = DOCS / "user" / "samplers.md"
    specs = contract.SCHEDULERS
    table = list(_rows(page.read_text().split("\n## ")[0]))[2:]
    rows = {row[0].strip("`"): row[1:] for row in table}
    assert list(rows) == [name for name, spec in specs.items() if not spec.spread]
    for name, (cls, evaluations, noise, title) in rows.items():
        spec = specs[name]
        assert (cls, title) == (f"`{spec.cls}`", spec.title)
        assert {"n": 9, "2n - 1": 17, "n + 1": 10}[evaluations] == spec.count(9)
        assert bool(noise) == (name in _NOISY)
    ends = list(_rows(_section(page, "How noise levels are spread")))[2:]
    assert [row[0] for row in ends] == [f"`_{spread}`" for spread in contract.SPREADS]
    every = SPAN.findall(ends[0][2])
    for spread in contract.SPREADS:
        more = ["euler_ancestral", "ddim"] if spread == "trailing" else []
        has = [spec.base for spec in specs.values() if spec.spread == spread]
        assert sorted(has) == sorted(every + more)


def test_the_page_of_metrics_has_the_table() -> None:
    first = (DOCS / "metrics.md").read_text().split("\n## ")[0]
    rows = [[cell.strip("`") for cell in row] for row in _rows(first)]
    documented = {row[0]: row[1:] for row in rows if row[0].startswith(PREFIX)}
    assert documented == {
        f"{PREFIX}{name}": [
            m.kind,
            ", ".join(f"`{label}`" for label in m.labels).strip("`"),
            m.text,
        ]
        for name, m in TABLE.items()
    }
    labels: dict[str, set[str]] = {}
    for metric in TABLE.values():
        for label, values in metric.labels.items():
            labels.setdefault(label, set()).update(values)
    assert {row[0]: set(row[1].split(", ")) for row in rows if row[0] in labels} == labels


_NOISY = ("euler_ancestral", "lcm", "dpmpp_2m_sde", "dpmpp_sde", "tcd")


def _kinds(base: type[errors.TesseraError]) -> Iterator[type[errors.TesseraError]]:
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from _kinds(kind)


def _exit_code(kind: type[errors.TesseraError]) -> int:
    """With which `tessera` ends."""
    error = kind.__new__(kind)
    Exception.__init__(error, "a sentence")
    with pytest.raises(typer.Exit) as raised:
        fail(error)
    return raised.value.exit_code


def test_every_error_is_documented_with_its_codes() -> None:
    rows = {row[0].strip("`"): row for row in _rows((DOCS / "user" / "errors.md").read_text())}
    for kind in _kinds(errors.TesseraError):
        row = rows[kind.__name__]
        assert (row[2], row[-1]) == (kind.status, str(_exit_code(kind))), kind.__name__
    public = {n for n in tessera_client.__all__ if isinstance(getattr(tessera_client, n), type)}
    raised = {n for n in public if issubclass(getattr(tessera_client, n), Exception)}
    assert raised <= set(rows)


@pytest.mark.parametrize(
    ("title", "command"),
    [
        ("tessera-serve", COMMANDS["tessera-serve"]),
        ("tessera-gateway", COMMANDS["tessera-gateway"]),
        ("tessera-build bundle", _subcommand(COMMANDS["tessera-build"], "bundle")),
    ],
    ids=["serve", "gateway", "bundle"],
)
def test_configuration_has_every_option(title: str, command: Command) -> None:
    text = _section(DOCS / "user" / "configuration.md", title)
    assert _first_cells(text) == _options(command) - {"--help"}


def test_configuration_has_every_variable() -> None:
    text = _section(DOCS / "user" / "configuration.md", "Environment variables")
    sources = (ROOT / "python_backend").rglob("*.py")
    used = {v for p in sources for v in re.findall(r"\bTESSERA_[A-Z_]+\b", p.read_text())}
    assert _first_cells(text) == used


def test_every_case_of_the_red_team_has_a_test() -> None:
    rows = [r for r in _rows((DOCS / "internals" / "hardening.md").read_text()) if r[0][:1] == "O"]
    cases = {int(number) for row in rows for number in re.findall(r"O(\d+)", row[0])}
    assert cases == set(range(1, 30))
    for row in rows:
        folder = ROOT / "tests"
        for name in re.findall(r"`([\w/]+\.py)`", row[4]):
            folder = (ROOT / "tests" / name).parent if "/" in name else folder
            assert (folder / Path(name).name).is_file(), name
        assert folder != ROOT / "tests" or row[4] == "same", row[0]

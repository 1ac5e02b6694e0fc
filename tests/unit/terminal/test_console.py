"""What a console prints is what it was given, whatever that looks like."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from tessera.terminal.console import Console, visible

STRANGE = {
    "closing tag": "out/[/x]",
    "tag": "out/[bold]x",
    "emoji code": "a:bread:c",
    "escape": "out/\x1b[31mred",
    "bytes": "out/\udcff",
    "brackets": "[[a]]",
    "braces": "{task.completed}",
    "link": "[link=http://x]y[/link]",
    "backslash": "a\\[b]",
    "number and path": "/usr/1 True 'x'",
}
PATHS = st.one_of(
    st.sampled_from(sorted(STRANGE.values())),
    st.lists(
        st.sampled_from(["[", "]", "/", ":", "bread", "red", "\\", "=", " ", "{", "}", "%", "é"])
    ).map("".join),
    st.text(st.characters(exclude_characters="\n\t\r"), max_size=120),
    st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"").replace(b"\t", b"")).map(
        lambda b: b.decode(errors="surrogateescape")
    ),
)  # fmt: skip


def shown(print_it: Callable[[Console], Any], *, terminal: bool = False, width: int = 80) -> str:
    console, written = Console(), io.StringIO()
    console.file, console._force_terminal, console.width = written, terminal, width
    print_it(console)
    text = written.getvalue()
    text.encode()  # it can be written anywhere
    return text


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_a_text_is_printed_as_it_is(text: str) -> None:
    assert shown(lambda console: console.say(text)) == f"{visible(text)}\n"
    assert shown(lambda console: console.print(text)) == f"{visible(text)}\n"


@given(PATHS)
def test_any_path_is_printed_as_it_is(path: str) -> None:
    assert shown(lambda c: c.say(f"{path}.")) == f"{visible(path)}.\n"
    assert visible(path) == path or any(not c.isprintable() for c in path)


@given(PATHS)
def test_any_path_may_be_in_a_table(path: str) -> None:
    table = Table("name", "fine", title=path, box=None)
    table.add_row(f"<{path}>", Text("yes", "green"))
    printed = shown(lambda c: c.print(table), width=1000)
    assert f"<{visible(path)}>" in printed


@given(PATHS)
def test_any_path_may_be_in_a_bar_and_a_status(path: str) -> None:
    def work(console: Console) -> None:
        with console.doing(path) as news:
            news(f"reading {path}")
        with console.bar() as bar:
            bar.update(bar.add_task(path, total=1), description=f"<{path}>", completed=1)

    assert f"<{visible(path)}>" in shown(work, terminal=True, width=1000)


def test_what_a_terminal_would_obey_is_made_visible() -> None:
    assert visible("a\x1b[2Jb\x07\r\x9b\udce9\n\tc") == "a\\x1b[2Jb\\x07\\r\\x9b\\udce9\n\tc"


def test_a_line_is_as_long_as_its_text() -> None:
    text = "a rather long path " * 20 + "end"
    assert shown(lambda console: console.say(text)) == f"{text}\n"


def test_colours_are_for_terminals() -> None:
    assert shown(lambda console: console.say("oh", style="red")) == "oh\n"

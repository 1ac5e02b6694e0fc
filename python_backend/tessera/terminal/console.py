"""A console that prints texts as they are.

Paths, names and prompts are other people's. They may look like rich's markup (`[/x]`) or its emoji
codes (`:bread:`), or hold what a terminal would obey.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but tab and newline, and bytes of a path that are no UTF-8."""


class Console(rich.console.Console):
    """Rich's console without markup, emoji codes and guessed colours.

    Every text on it is printed as it is, in tables too; colours are for `rich.text.Text`.

    Args:
        stderr: whether it writes there.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """What rich makes of any text that is printed."""
        return super().render_str(visible(text), **options)

    def say(self, text: str, *, style: str | None = None) -> None:
        """Print a text that is cut into lines by nobody but the terminal."""
        self.print(text, style=style, soft_wrap=True)

    @contextmanager
    def doing(self, text: str) -> Iterator[Callable[[str], None]]:
        """Show what is being done as long as the body takes; yields what to call with news."""
        with self.status(plain(text)) as status:
            yield lambda news: status.update(plain(news))

    def bar(self, *, transient: bool = False) -> Progress:
        """A bar for each task: its description, how far it is, and for how long it has run."""
        columns = (_Description(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=self, transient=transient)


class _Description(ProgressColumn):
    def render(self, task: Task) -> Text:
        """What rich calls at every change."""
        return plain(f"{task.description:<14}")


def new_table(*columns: str, title: str = "", numbers: Collection[str] = ()) -> Table:
    """A table without lines, whose cells are wrapped where there is no room for them, never cut;
    columns of numbers are flush right.
    """
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table


def plain(text: str) -> Text:
    """A text for those parts of rich that take markup whatever their console says."""
    return Text(visible(text))


def visible(text: str) -> str:
    """A text with escapes (`\\x1b`) in place of what cannot be printed, or would be obeyed."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)

"""What `tessera` shows while a picture is drawn: a bar, and with `--preview` the picture."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image
from rich.color import Color
from rich.console import Group
from rich.live import Live
from rich.progress import Progress
from rich.style import Style
from rich.text import Text

from tessera.contract import JobStatus
from tessera.terminal.console import Console
from tessera_client.previews import OnPreview, Preview
from tessera_client.results import Result
from tessera_client.terminal import PICTURE, console, option

ShowPreview = Annotated[
    bool, option(PICTURE, "--preview", help="Show the picture in the terminal while it is drawn.")
]
PreviewFile = Annotated[
    Path | None,
    option(
        PICTURE,
        "--preview-file",
        metavar="FILE",
        help="Write the picture so far to this file, again and again.",
    ),
]

COLUMNS, ROWS = 64, 24
"""Largest picture in the terminal, in characters; each has two pixels, one above the other."""


@dataclass(frozen=True)
class Screen:
    """Where previews go.

    Attributes:
        shown: whether previews appear below the bar.
        file: which file they are written to; `None` if to none.
        console: terminal of the progress bar.

    Raises:
        ValueError: they are to appear where there is no terminal, or the file is of no known kind.
    """

    shown: bool = False
    file: Path | None = None
    console: Console = console

    def __post_init__(self) -> None:
        if self.shown and (not self.console.is_terminal or self.console.is_dumb_terminal):
            raise ValueError("--preview needs a terminal; use --preview-file FILE")
        if self.file and self.file.suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"--preview-file is {self.file}; accepted: a name like preview.png")

    @property
    def wanted(self) -> bool:
        """Whether there are previews."""
        return self.shown or self.file is not None

    @contextmanager
    def beside(self, bar: Progress) -> Iterator[OnPreview | None]:
        """Show the bar as long as the body takes; yields what to call with previews, `None` if
        nobody wants them.
        """
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        if not self.shown:
            with bar:
                yield self._write if self.file else None
            return
        with Live(bar, console=self.console, transient=True) as live:

            def show(preview: Preview) -> None:
                live.update(Group(bar, half_blocks(preview)))
                self._write(preview)

            yield show

    def _write(self, preview: Preview) -> None:
        """Replace the file, so that whoever reads it finds a whole picture."""
        if self.file is None:
            return
        partial = self.file.with_stem(f".{self.file.stem}-partial")
        preview.enlarged().save(partial)
        partial.replace(self.file)


def with_progress(
    draw: Callable[..., Result], steps: int | None, job_id: str | None, screen: Screen
) -> Result:
    """The answer of `draw`, which takes the keywords `job_id`, `on_progress` and `on_preview`, with
    a bar until it comes; `steps` and the id if they are known.
    """
    job = job_id or uuid.uuid4().hex
    bar = screen.console.bar(transient=True)
    task = bar.add_task(f"{job} {'queued':<10}", total=steps)

    def show(status: JobStatus) -> None:
        words = f"{job} {status.phase:<10}"
        bar.update(task, description=words, completed=status.step, total=status.total)

    with screen.beside(bar) as show_preview:
        return draw(job_id=job, on_progress=show, on_preview=show_preview)


@contextmanager
def one_bar(first: str, count: int) -> Iterator[Callable[[JobStatus], None]]:
    """Show how far several jobs are together as long as the body takes; yields what to call with
    the state of each. Their ids begin with `first`.
    """
    shares: dict[str, float] = {}
    with console.bar(transient=True) as bar:
        task = bar.add_task(f"{first} queued", total=count)

        def show(status: JobStatus) -> None:
            shares[status.job_id] = status.step / max(status.total, 1)
            done = sum(list(shares.values()))
            bar.update(task, description=f"{first} drawing", completed=done)

        yield show


def half_blocks(preview: Preview) -> Text:
    """A preview as characters whose upper half is one pixel and whose lower half another."""
    picture = preview.enlarged()
    picture.thumbnail((COLUMNS, 2 * ROWS))
    width, height = picture.size
    even = picture.resize((width, height + height % 2))
    pixels = [[even.getpixel((x, y)) for x in range(width)] for y in range(even.height)]
    text = Text()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper, lower, strict=True):
            text.append("\N{UPPER HALF BLOCK}", Style(color=_colour(above), bgcolor=_colour(below)))
        text.append("\n")
    return text


def _colour(pixel: object) -> Color:
    return Color.from_rgb(*pixel)  # type: ignore[misc]

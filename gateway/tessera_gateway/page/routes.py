"""The routes of the playground's files.

They need no key: the page asks its reader for one. The policy lets the page load and reach nothing
but this server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

STATIC = Path(__file__).parent / "static"
FILES = {path.name: path for path in sorted(STATIC.iterdir()) if path.is_file()}
INDEX = "index.html"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""`no-cache` means that a browser asks whether its copy is still the right one."""

_KINDS = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> Response:
    """The page."""
    return _answer(FILES[INDEX])


@router.get("/page/{name}")
async def file(name: Annotated[str, PathParameter(max_length=80)]) -> Response:
    """A script or style of the page."""
    if name not in FILES:
        raise HTTPException(404, "the page has no such file")
    return _answer(FILES[name])


def _answer(path: Path) -> Response:
    return FileResponse(path, media_type=_KINDS[path.suffix], headers=HEADERS)

"""The page at `/`: images tried on tasks, and what is served. Plain files, no build step.

It asks for nothing but itself and the API, by relative addresses, so that a proxy may put both
under a path of its own.
"""

import hashlib
from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

__all__ = ["CONTENT_SECURITY_POLICY", "add_page"]

INDEX = "index.html"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_page(app: Starlette) -> None:
    """Serve the page at `/` and what it is made of under `/ui`; the files are read once, here."""
    for file in files(__name__).joinpath("static").iterdir():
        path = "/" if file.name == INDEX else f"/ui/{file.name}"
        _add_file(app, path, file.read_bytes(), TYPES["." + file.name.rpartition(".")[2]])


def _add_file(app: Starlette, path: str, content: bytes, media_type: str) -> None:
    headers = HEADERS | {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def get(request: Request) -> Response:
        known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
        if headers["ETag"] in known or f"W/{headers['ETag']}" in known:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    app.add_route(path, get, methods=["GET"], include_in_schema=False)

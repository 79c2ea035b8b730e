"""The web page at `/`: one file, without a request to anywhere else.

Its content security policy allows exactly the script and the style in it, by their SHA-256. So text
that would slip into the page as HTML runs nothing.
"""

import base64
import hashlib
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse


def page_router() -> APIRouter:
    """Return the route of the page; it needs no API key, what it requests does."""
    html = files("videoar.serving").joinpath("page.html").read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": _policy(html),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    return router


def _policy(html: str) -> str:
    """Return the content security policy of a page."""
    script, style = (_sha256(html, tag) for tag in ("script", "style"))
    # the icon and previews are data, videos are blobs that the script has fetched with the key
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; "
        "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _sha256(html: str, tag: str) -> str:
    """Return the source expression of the only element with a tag."""
    content = html.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

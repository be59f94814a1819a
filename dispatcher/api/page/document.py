"""Whole documents around what the page shows, their policy, and the files they load from us and from nobody else."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files

from dispatcher.api.page.markup import Markup, element

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "vary": "Accept, Authorization, X-API-Key",
}
HTML_TYPE = "text/html; charset=utf-8"
ASSETS = {  # path → its type; each is asked for with a version, so that a browser may keep it
    "/page/status.css": "text/css; charset=utf-8",
    "/page/status.js": "text/javascript; charset=utf-8",
    "/page/icon.svg": "image/svg+xml",
}
_TITLE = "AI Model Dispatcher"


@cache
def asset(path: str) -> tuple[bytes, str]:
    """Its bytes and its version. KeyError for a path that is not among ASSETS."""
    ASSETS[path]
    body = files("dispatcher.api.page").joinpath(path.rpartition("/")[2]).read_bytes()
    return body, sha256(body).hexdigest()[:16]


def document(body: Markup, *, fragment: str | None, title: str = "") -> bytes:
    """fragment: where the script finds what is in `body` as it is by now; None: it stays what it is; "": where this
    address has it, once there is a key."""
    return (
        b"<!doctype html>"
        + element(
            "html",
            _head(f"{title} · {_TITLE}" if title else _TITLE),
            element(
                "body",
                element("a", "Skip to the content", href="#content", class_="skip"),
                _top(live=fragment is not None),
                element("main", body, id="content", tabindex="-1", data_fragment=fragment),
                _foot(with_key=fragment == ""),
            ),
            lang="en",
        ).encode()
    )


def sign_in(because: str) -> bytes:
    """For a browser that comes without a key where one is needed: the script asks for it and then fetches the rest."""
    told = element(
        "section",
        element("h2", "A key is needed"),
        element("p", because, class_="quiet"),
        element(
            "noscript", element("p", "Without JavaScript a browser cannot send one; curl and dispatcher status can.")
        ),
        class_="card",
        id="signed-out",
    )
    return document(Markup(f'{told}<div id="status"></div>'), fragment="")


def _head(title: str) -> Markup:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("title", title),
        element("meta", name="viewport", content="width=device-width,initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href=_versioned("/page/icon.svg"), type="image/svg+xml"),
        element("link", rel="stylesheet", href=_versioned("/page/status.css")),
        element("script", src=_versioned("/page/status.js"), defer=True),
    )


def _versioned(path: str) -> str:
    return f"{path}?v={asset(path)[1]}"


def _top(*, live: bool) -> Markup:
    key_form = element(
        "form",
        element("label", "Key", for_="key"),
        element("input", id="key", type="password", autocomplete="off", spellcheck="false", required=True),
        element("button", "Use this key", type="submit"),
        id="key-form",
        hidden=True,
    )
    return element(
        "header",
        element("h1", element("a", _TITLE, href="/")),
        element("p", "As of when it was loaded", id="live", role="status") if live else None,
        element("button", "Forget the key", type="button", id="forget", hidden=True),
        key_form,
        element("p", id="told", role="status", aria_live="polite"),
    )


def _foot(*, with_key: bool) -> Markup:
    """A link sends no key: where one is needed, only what is open to all is linked to."""
    links = [("/runbook", "Runbook")]
    if not with_key:
        links += [("/openapi.json", "What can be asked"), ("/metrics", "Metrics"), ("/readyz?verbose", "Readiness")]
    return element("footer", element("nav", *(element("a", word, href=to) for to, word in links), aria_label="More"))

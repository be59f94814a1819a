"""When the page says that it is live, in a real Chromium: what it shows, the stream, the key and the tab all count."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.page.conftest import Watched
from tests.page.houses import KEYS, is_live, select

pytestmark = pytest.mark.needs_chromium


def hide(page: Page, hidden: bool) -> None:
    """As when its tab is left, or seen again."""
    page.evaluate(
        "hidden => Object.defineProperty(document, 'hidden', {get: () => hidden, configurable: true})", hidden
    )
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def with_key(page: Page, key: str) -> None:
    page.get_by_label("Key").fill(key)
    page.get_by_role("button", name="Use this key").click()


def test_it_is_not_called_live_while_what_it_shows_cannot_be_fetched(daemon, watched: Watched):
    watched.allowed = ("status of 500",)
    page = watched.open(daemon.url)
    is_live(page)
    page.route("**/page/fragments/status", lambda route: route.fulfill(status=500, body="{}"))
    page.evaluate(
        "() => { window.said = []; new MutationObserver(() => said.push(document.getElementById('live').textContent))"
        ".observe(document.getElementById('live'), { childList: true, characterData: true, subtree: true }); }"
    )
    for _ in range(2):  # the stream goes on: a second event tells nothing of what is shown
        with page.expect_response("**/page/fragments/status"):
            select(daemon)
        expect(page.locator("#live")).to_contain_text("Not live")
    said = page.evaluate("said")
    page.unroute("**/page/fragments/status")
    select(daemon)

    is_live(page)
    assert "Live" not in said[next(n for n, words in enumerate(said) if words.startswith("Not live")) :]


def test_a_dispatcher_that_takes_a_call_and_says_nothing_is_told(daemon, watched: Watched):
    watched.allowed = ("ERR_FAILED",)
    page = watched.open("about:blank")
    page.clock.install()
    page.route("**/events", lambda route: None)
    page.goto(daemon.url)
    expect(page.locator("html.is-scripted")).to_have_count(1)
    page.clock.fast_forward(60_000)

    expect(page.locator("#live")).to_contain_text("the dispatcher is silent")
    watched.asked.discard("about://")


def test_a_tab_that_was_left_and_is_seen_again_goes_on_with_keys_too(keyed, watched: Watched):
    watched.allowed = ("status of 401",)
    page = watched.open(keyed.url)
    with_key(page, KEYS["INFER_KEY"])
    is_live(page)
    with page.expect_event("requestfailed", lambda request: request.url.endswith("/events")):
        hide(page, True)
    with page.expect_request("**/events"):
        hide(page, False)

    is_live(page)


def test_a_key_that_no_header_can_carry_is_named(keyed, watched: Watched):
    watched.allowed = ("status of 401",)
    page = watched.open(keyed.url)
    with_key(page, "schlüssel–0123456789")
    expect(page.locator("#told")).to_contain_text("outside ASCII")
    with_key(page, KEYS["INFER_KEY"])

    is_live(page)

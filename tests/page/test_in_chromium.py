"""The page as people meet it: a real Chromium on a real daemon that rehearses.

DISPATCHER_WRITE_PICTURES=1 scripts/test tests/page/test_in_chromium.py -k pictures    writes docs/pictures/
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.running import ROOT, RunningDaemon, running
from tests.page.conftest import Watched
from tests.page.houses import CONFIG, KEYS, NO_DOCKER, is_live, select
from tests.realparts import eventually

pytestmark = pytest.mark.needs_chromium

IMAGE = "<img src=x onerror=alert(1)>"
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 1.5}


def chat(daemon: RunningDaemon, model: str, words: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": words}], "stream": False}
    assert 200 == daemon.post("/api/chat", **body).status_code


def card(page: Page, model: str):
    return page.locator(".place", has=page.locator(f"h3 .model:text-is('{model}')"))


def decision_of(page: Page, decision_id: str):
    return page.locator(f"li[data-key='{decision_id}']")


def counted(daemon: RunningDaemon) -> list[str]:
    """Every decision that left an event is in one of these."""
    return [line for line in daemon.get("/metrics").text.splitlines() if line.startswith("dispatcher_decisions_total")]


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_what_happens_shows_while_the_page_is_open(daemon, watched: Watched):
    page = watched.open(daemon.url)
    is_live(page)
    answer = select(daemon, model="llama3.2:3b", agent="digest")

    expect(decision_of(page, answer["decision_id"])).to_contain_text("for digest")
    expect(card(page, "llama3.2:3b").locator(".state")).to_have_text("ready")


def test_a_name_that_is_markup_stays_text(daemon, watched: Watched):
    page = watched.open(daemon.url)
    is_live(page)
    answer = select(daemon, agent=IMAGE, model="llama3.2:3b")
    unknown = daemon.select(model=IMAGE, agent=IMAGE, soft=True).json()
    shown = decision_of(page, answer["decision_id"])

    expect(shown).to_contain_text(f"for {IMAGE}")
    expect(decision_of(page, unknown["decision_id"])).to_contain_text("no model")
    for answered in (answer, unknown):
        opened = decision_of(page, answered["decision_id"])
        opened.locator("summary").click()
        expect(opened.locator(".whole")).to_contain_text(IMAGE)
    page.get_by_role("textbox", name="Prompt").fill(IMAGE)
    page.get_by_role("button", name="Show the choice").click()
    expect(page.locator("#choice .whole")).to_be_visible()
    assert 0 == page.locator("img").count()


def test_from_a_pin_to_a_decision_to_its_reasons(daemon, watched: Watched):
    page = watched.open(daemon.url)
    is_live(page)
    page.get_by_label("Requests for auto get").select_option("phi3:mini")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("#told")).to_contain_text("phi3:mini: pin")
    expect(card(page, "phi3:mini").locator(".badge", has_text="pinned")).to_be_visible()
    answer = select(daemon, prefer="quality")
    shown = decision_of(page, answer["decision_id"])
    expect(shown.locator("summary")).to_contain_text("phi3:mini")
    shown.locator("summary").click()

    expect(shown.locator(".candidate")).to_have_count(3)
    expect(shown.locator(".candidate.chosen")).to_contain_text("phi3:mini")
    expect(shown.locator(".candidate.rejected .rule").first).to_have_text("not_allowed")
    expect(shown.locator(".candidate.chosen .scores")).to_contain_text("capability")

    select(daemon, agent="later")  # the list changes meanwhile: what was opened stays open
    expect(page.locator(".decision", has_text="for later")).to_be_visible()
    expect(shown.locator(".candidate.chosen")).to_be_visible()

    page.get_by_label("Requests for auto get").select_option("")
    page.get_by_role("button", name="Apply").click()
    expect(card(page, "phi3:mini").locator(".badge", has_text="pinned")).to_have_count(0)
    assert daemon.get("/models").json()["pinned_model"] is None


def test_a_model_is_started_and_stopped_by_hand(daemon, watched: Watched):
    page = watched.open(daemon.url)
    is_live(page)
    state = card(page, "qwen2.5:7b").locator(".state")
    expect(state).to_have_text("stopped")
    page.get_by_role("button", name="Start qwen2.5:7b").click()
    expect(state).to_have_text("ready")
    page.get_by_role("button", name="Stop qwen2.5:7b").click()
    expect(state).to_have_text("stopped")

    expect(page.locator("#told")).to_contain_text("qwen2.5:7b: stop")


def test_what_cannot_be_done_is_said(daemon, watched: Watched):
    watched.allowed = ("status of 404", "status of 409")
    page = watched.open(daemon.url)
    is_live(page)
    page.evaluate("document.querySelector('[data-act=start], [data-act=stop]').dataset.model = 'nobody:1b'")
    page.locator("[data-model='nobody:1b']").click()

    expect(page.locator("#told.bad")).to_contain_text("no place runs nobody:1b")


def test_a_prompt_is_tried_and_nothing_is_kept_of_it(daemon, watched: Watched):
    page = watched.open(daemon.url)
    is_live(page)
    before = counted(daemon), daemon.states()
    page.get_by_role("textbox", name="Prompt").fill("Write a test for a parser, and explain <b>why</b>")
    page.locator("#try-form select[name=prefer]").select_option("quality")
    page.get_by_role("button", name="Show the choice").click()

    expect(page.locator("#choice .candidate")).to_have_count(3)
    expect(page.locator("#choice")).to_contain_text("quality")
    assert before == (counted(daemon), daemon.states())
    assert "explain" not in daemon.log()


def test_it_says_when_it_is_not_live_and_comes_back(tmp_path, watched: Watched):
    watched.allowed = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_EMPTY_RESPONSE", "ERR_FAILED")
    watched.allowed += ("ERR_CONNECTION_RESET", "ERR_CONTENT_LENGTH_MISMATCH", "status of 503")
    with running(tmp_path, CONFIG, environment=NO_DOCKER) as daemon:
        page = watched.open(daemon.url)
        is_live(page)
        daemon.kill()
        expect(page.locator("#live")).to_contain_text("Not live, as of")
        expect(page.locator("html.is-stale")).to_have_count(1)
        daemon.start()

        is_live(page)
        answer = select(daemon)
        expect(decision_of(page, answer["decision_id"])).to_be_visible()


def test_with_keys_it_asks_for_one_and_shows_what_its_role_may(keyed, watched: Watched):
    watched.allowed = ("status of 401",)
    page = watched.open(keyed.url)
    expect(page.get_by_label("Key")).to_be_focused()
    assert 0 == page.locator(".place").count()

    page.get_by_label("Key").fill("wrong-0123456789abcdef")
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#told")).to_have_text("This key is not known here.")

    page.get_by_label("Key").fill(KEYS["INFER_KEY"])
    page.get_by_role("button", name="Use this key").click()
    is_live(page)
    expect(page.locator(".place")).to_have_count(3)
    assert 0 == page.locator("button[data-act]").count()

    page.get_by_role("button", name="Forget the key").click()
    page.get_by_label("Key").fill(KEYS["ADMIN_KEY"])
    page.get_by_role("button", name="Use this key").click()
    is_live(page)
    page.get_by_role("button", name="Start phi3:mini").click()
    expect(card(page, "phi3:mini").locator(".state")).to_have_text("ready")
    assert KEYS["ADMIN_KEY"] not in page.content() + page.url


def test_a_decision_has_a_page_of_its_own_with_and_without_keys(daemon, keyed, watched: Watched, chromium):
    answer = select(daemon)
    page = watched.open(f"{daemon.url}/page/decisions/{answer['decision_id']}")
    expect(page.locator(".candidate")).to_have_count(3)

    secret = Watched(chromium)
    page = secret.open(f"{keyed.url}/page/decisions/d-none")
    expect(page.get_by_label("Key")).to_be_visible()
    for context in secret.contexts:
        context.close()


def test_without_javascript_it_is_complete(daemon, watched: Watched):
    answer = select(daemon, agent="plain")
    page = watched.open(daemon.url, java_script_enabled=False)

    expect(page.locator(".place")).to_have_count(3)
    expect(page.locator(".memory-bar rect").first).to_be_visible()
    expect(page.locator(".place button").first).to_be_hidden()
    expect(page.locator("#try-form")).to_be_hidden()
    shown = decision_of(page, answer["decision_id"])
    shown.locator("summary").click()
    shown.get_by_role("link", name="Every candidate, rule and number").click()
    expect(page.locator(".candidate")).to_have_count(3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(scheme, daemon, watched: Watched):
    answer = select(daemon, agent="x" * 200)
    page = watched.open(daemon.url, color_scheme=scheme, **PHONE)
    is_live(page)
    shown = decision_of(page, answer["decision_id"])
    shown.locator("summary").click()
    expect(shown.locator(".whole")).to_be_visible()

    assert fits(page)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert {"light": "rgb(246, 246, 243)", "dark": "rgb(20, 23, 26)"}[scheme] == ground


def test_the_keyboard_reaches_everything_and_keeps_its_place(daemon, watched: Watched):
    page = watched.open(daemon.url)
    is_live(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(4):
        page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.outerHTML")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    answer = select(daemon, agent="meanwhile")
    expect(decision_of(page, answer["decision_id"])).to_be_visible()

    assert "<button" in focused and "none" != outline
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"


def test_the_runbook_is_where_alerts_link_to(daemon, watched: Watched):
    page = watched.open(f"{daemon.url}/runbook", **PHONE)
    ids = page.eval_on_selector_all("h2", "all => all.map(one => [one.id, one.textContent.trim().toLowerCase()])")

    assert ids
    assert [] == [pair for pair in ids if pair[0] != pair[1]]
    assert fits(page)


def test_pictures_for_the_documents_are_made(watched: Watched, tmp_path):
    """Into docs/pictures only when asked, and then slower: every run would change them."""
    wanted = bool(os.environ.get("DISPATCHER_WRITE_PICTURES"))
    config = {**CONFIG, "rehearsal": {"time_scale": 0.1 if wanted else 0.01}}
    del config["models"]
    with running(tmp_path / "daemon", config, environment=NO_DOCKER) as daemon:
        lived_in(daemon)
        pictured(watched, daemon, ROOT / "docs/pictures" if wanted else tmp_path)


def pictured(watched: Watched, daemon: RunningDaemon, folder: Path) -> None:
    for name, wishes in (
        ("light", {"color_scheme": "light"}),
        ("dark", {"color_scheme": "dark"}),
        ("phone", {"color_scheme": "light", **PHONE}),
    ):
        page = watched.open(daemon.url, **wishes)
        is_live(page)
        first = page.locator(".decision").first
        first.locator("summary").click()
        expect(first.locator(".whole")).to_be_visible()
        path = folder / f"status-page-{name}.png"
        page.mouse.move(0, 0)
        width, height = (390, 1700) if name == "phone" else (1280, 1500)
        page.screenshot(path=path, full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height})
        page.context.close()  # before its daemon ends, which it would tell

        assert is_a_picture(path)


def is_a_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def lived_in(daemon: RunningDaemon) -> None:
    """A few models, a few agents, and answers of different lengths."""
    for length in (1, 6, 3, 5):
        chat(daemon, "llama3.2:3b", f"Tell me {length} things about the sea. " * length)
        chat(daemon, "phi3:mini", f"Translate {length} words of this. " * length)
    select(daemon, prompt="Summarise these minutes in three sentences.", agent="daily-digest", prefer="quality")
    select(daemon, prompt="Translate to French: good morning", agent="mailer", prefer="speed")
    select(daemon, prompt="Why does this traceback end in a KeyError?", task="debugging", agent="reviewer")
    eventually(lambda: daemon.get("/decisions").json()["decisions"] or None, deadline_seconds=10, what="decisions")

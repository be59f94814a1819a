"""A real Chromium, and what every page that it opens is held to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests import attendance
from tests.e2e.running import RunningDaemon, running
from tests.page.houses import CONFIG, KEYED, KEYS, NO_DOCKER

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_SECONDS = 30
expect.set_options(timeout=PATIENCE_SECONDS * 1000)
# Says what the policy forbade, and what a name that became markup would have run.
WATCH = """
window.alert = () => console.error("alert() was called");
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`);
});
"""


@pytest.fixture(scope="module")
def chromium(request: pytest.FixtureRequest) -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        attendance.unavailable(request.config, "Chromium", "no chromium on the PATH (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        attendance.present(request.config, "Chromium", browser.version)
        yield browser
        browser.close()


@dataclass
class Watched:
    """Opens pages. allowed: console errors that the test is about, by a part of their words."""

    browser: Browser
    contexts: list[BrowserContext] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    allowed: tuple[str, ...] = ()

    def open(self, url: str, **wishes: Any) -> Page:
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **wishes})
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        self.contexts.append(context)
        page = context.new_page()
        if wishes.get("java_script_enabled", True):
            page.add_init_script(WATCH)
        page.on("console", lambda said: self.troubles.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("request", lambda request: self.asked.add("{0.scheme}://{0.netloc}".format(urlsplit(request.url))))
        page.goto(url)
        return page

    def wrong(self) -> list[str]:
        return [said for said in self.troubles if not any(words in said for words in self.allowed)]


@pytest.fixture
def watched(chromium: Browser) -> Iterator[Watched]:
    """No page may say an error, meet its own policy, or ask anybody but the one daemon it came from."""
    one = Watched(chromium)
    yield one
    for context in one.contexts:
        context.close()
    assert [] == one.wrong()
    assert 1 == len(one.asked), one.asked


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running(tmp_path_factory.mktemp("page"), CONFIG, environment=NO_DOCKER) as one:
        yield one


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running(tmp_path_factory.mktemp("page-keyed"), KEYED, environment={**NO_DOCKER, **KEYS}) as one:
        yield one

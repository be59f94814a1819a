"""What a real Ollama was captured saying when it failed, said again to the gateway of the real daemon: every request
ends rescued or visibly failed. And a good answer cut anywhere, in any pieces, never looks whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dispatcher.wire.relayed import Watch, refusal, whole
from tests import misconduct
from tests.e2e.gateway_house import LLAMA, PHI, QUICK, QWEN, Got, House, Way, house, new_case
from tests.misbehaving import Line, words_of
from tests.wire.captured import FOLDER, Captured, captured, every

FAMILIES = ("runner_killed_", "container_", "busy_", "memory_guard")
KINDS = (
    "starved",
    "abandoned",
    "_runner_killed",
    "context_exceeded_truncate_false",
    "_client_disconnect_while_loading",
)
LONGEST_PAUSE_SECONDS = 2.5
PATIENT = {**QUICK, "cache": {"enabled": False}}


def _of_failures(capture: Captured) -> bool:
    return capture.name.startswith(FAMILIES) or any(kind in capture.name for kind in KINDS)


PLAYED = {capture.name: capture for capture in every() if _of_failures(capture)}
GOOD = {"/v1/chat/completions": captured("v1_chat_stream"), "/api/chat": captured("chat_stream")}


def test_the_captures_of_failures_are_all_here() -> None:
    assert {*FAMILIES, "starved", "abandoned"} == {
        word for word in (*FAMILIES, "starved", "abandoned") if any(word in name for name in PLAYED)
    }
    assert len(PLAYED) >= 30


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("played"), PATIENT) as made:
        yield made


def _delays(name: str) -> list[float]:
    """Seconds before each piece as it came; of the first, since the request."""
    meta = json.loads((FOLDER / f"{name}.meta.json").read_text())
    times = [at for at, _ in meta.get("chunks") or ()] or [meta.get("first_byte_seconds") or 0.0]
    waits = [later - earlier for earlier, later in zip([0.0, *times[:-1]], times, strict=True)]
    return [min(LONGEST_PAUSE_SECONDS, wait) for wait in waits]


def _is_whole(capture: Captured) -> bool:
    """By what it says; not by how its body ended."""
    if capture.status != 200:
        return False
    if not capture.streamed:
        return whole(capture.endpoint, capture.body) is None
    watch = Watch(capture.endpoint.surface)
    watch.take(capture.body)
    watch.end()
    return watch.ended


@pytest.mark.parametrize("name", PLAYED)
async def test_what_a_real_server_said_when_it_failed_ends_rescued_or_visibly_failed(there: House, name: str) -> None:
    capture, case = PLAYED[name], new_case("played")
    stream = capture.streamed or bool(isinstance(capture.sent, dict) and capture.sent.get("stream"))
    way = Way(path=capture.endpoint.path, stream=stream and capture.endpoint.may_stream)
    there.server.script(case, {PHI: misconduct.plays(capture, delays=_delays(name))})

    got = await there.ask(way, case)

    if got.model in (LLAMA, QWEN):
        assert capture.endpoint.kind == "generate", "vectors of another model"
        got.assert_answered_by(got.model, attempts=2)
    elif _is_whole(capture) and got.status == 200 and not got.error:
        assert capture.body == got.body, got
        assert not got.broken, got
    else:
        got.assert_failed_visibly()
        if got.status == 200:
            assert capture.body.startswith(_before_the_error(got)), got
        elif not _is_whole(capture) and capture.status not in (None, 200):
            cause = refusal(capture.status or 0, capture.body)
            assert capture.endpoint.kind == "embed" or cause in ("caller_error", "wrong_option"), f"{cause}: {got}"
    assert 1 <= there.asked(case) <= 3


@pytest.mark.parametrize("name", [name for name, capture in PLAYED.items() if capture.endpoint.kind == "generate"])
async def test_when_every_model_fails_as_captured_it_is_seen(there: House, name: str) -> None:
    capture, case = PLAYED[name], new_case("played")
    if _is_whole(capture):
        return
    stream = capture.streamed or bool(isinstance(capture.sent, dict) and capture.sent.get("stream"))
    there.server.script(case, {"*": misconduct.plays(capture)})

    got = await there.ask(Way(path=capture.endpoint.path, stream=stream), case)

    got.assert_failed_visibly()
    assert there.asked(case) <= 3
    assert got.status == 200 or got.words == ""


def _before_the_error(got: Got) -> bytes:
    """What came of the answer: all but the last line or event, and the blank lines before it."""
    said = got.body.rstrip(b"\n")
    return said[: said.rfind(b"\n") + 1].rstrip(b"\n")


@st.composite
def _cuts(draw: st.DrawFn) -> tuple[str, list[bytes], int, misconduct.Ending]:
    path = draw(st.sampled_from(sorted(GOOD)))
    body = GOOD[path].body
    size = draw(st.integers(0, len(body)) | st.integers(len(body) - 20, len(body)))
    places = sorted(draw(st.sets(st.integers(0, size), max_size=12)))
    pieces = [body[start:end] for start, end in zip([0, *places], [*places, size], strict=True)]
    return path, pieces, size, draw(st.sampled_from(("close", "reset", "clean")))


@given(cut=_cuts())
@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_a_good_answer_cut_anywhere_comes_as_the_beginning_of_it_and_never_looks_whole(
    there: House, cut: tuple[str, list[bytes], int, misconduct.Ending]
) -> None:
    path, pieces, size, ending = cut
    case = new_case("cut")

    async def conduct(line: Line) -> None:
        await misconduct.chunked(line, pieces, ending)

    there.server.script(case, {PHI: conduct})
    got = asyncio.run(there.ask(Way(path=path, stream=True), case))

    body = GOOD[path].body
    if got.model in (LLAMA, QWEN):  # nothing of it had reached the client
        got.assert_answered_by(got.model, attempts=2)
        assert not any(word in got.body for word in (body[:100], *(word.encode() for word in words_of(PHI))))
    elif got.says_it_ended:
        assert not got.broken and not got.error, got
        assert body[:size].startswith(got.body), got
        assert body.rstrip() == got.body.rstrip(), "whole only when all of it came"
    else:
        got.assert_failed_visibly()
        came = _before_the_error(got)
        assert body[:size].startswith(came), got
        assert body[len(came) : len(came) + 1] == b"\n", "no line that is not whole"
        assert came, "an error of its own, before any content, would have been a rescue"

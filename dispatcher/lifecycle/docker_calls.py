"""The docker SDK in threads. It blocks everywhere (its constructor, too) and its timeouts are per socket read: so every
errand runs in a thread of its own under an absolute deadline, and one that hangs is abandoned, counted and bounded.

`Engine` is all that is ever asked of Docker: list, inspect, stats, start, stop (and ping/version, by the constructor),
plus events in `DockerEvents`. Nothing that creates, pulls, execs or deletes may come in here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import docker
import requests
from docker.context import ContextAPI
from docker.errors import APIError, InvalidVersion, NotFound
from urllib3.exceptions import ReadTimeoutError

from dispatcher.errors import DispatcherError, EngineRefused, EngineUnreachable
from dispatcher.lifecycle.docker_answers import MANAGED_LABEL, read_inspected, read_rows
from dispatcher.lifecycle.plain_words import in_few_words
from dispatcher.vocabulary.address import is_loopback

MAX_CALLS = 8  # threads at once, the abandoned ones included
_SDK_SHARE = 0.9  # of what is left until the deadline: the SDK should give up first, so that its thread ends
_SERVER_ERROR = 500
_QUIET_SECONDS = 60.0  # an event stream silent for so long is opened anew: the engine may be gone without a word
_RECONNECT_FIRST_SECONDS = 0.5
_RECONNECT_LAST_SECONDS = 30.0
# Health checks exec; exec and attach events would wake us every few seconds for nothing.
_WAKING = ("create", "destroy", "die", "kill", "oom", "pause", "rename", "restart", "start", "stop", "unpause")

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class Engine:
    """One connection to Docker, used by one thread at a time. A read answered with 5xx was not answered."""

    def __init__(self, client: docker.DockerClient, until_seconds: float) -> None:
        self._client = client
        self._api = client.api
        self.until_seconds = until_seconds  # of time.monotonic

    def containers(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """All that carry our label and these, stopped ones too; rows of `docker ps`. (containers.list() of the SDK
        inspects each and raises 404 when one vanishes meanwhile.)"""
        self._patience()
        return read_rows(_reading(lambda: self._api.containers(all=True, filters={"label": _wanted(labels)})))

    def inspect(self, name: str) -> dict[str, Any] | None:
        """None when there is none. EngineAnswerUnreadable as any call that reads: it is no answer of Docker's."""
        self._patience()
        try:
            return read_inspected(_reading(lambda: self._api.inspect_container(name)), name)
        except NotFound:
            return None

    def stats(self, name: str) -> dict[str, Any]:
        """One reading; engines before API 1.41 take a second or two for it."""
        self._patience()
        try:
            return dict(_reading(lambda: self._api.stats(name, stream=False, one_shot=True)))
        except InvalidVersion:
            return dict(_reading(lambda: self._api.stats(name, stream=False)))

    def start(self, name: str) -> None:
        self._patience()
        self._api.start(name)  # 304, it runs already, is no error to the SDK

    def stop(self, name: str, grace_seconds: int) -> None:
        self._patience(less_seconds=grace_seconds)  # the SDK adds the grace to its own timeout
        self._api.stop(name, timeout=grace_seconds)

    def _patience(self, less_seconds: float = 0.0) -> None:
        left_seconds = (self.until_seconds - time.monotonic()) * _SDK_SHARE - less_seconds
        if left_seconds <= 0:
            raise requests.Timeout("the deadline passed before the call was made")
        self._api.timeout = left_seconds  # type: ignore[assignment]  # requests takes fractions of a second


def _wanted(labels: Mapping[str, str]) -> list[str]:
    """As Docker filters by label: all of them."""
    return [f"{MANAGED_LABEL}=true", *(f"{name}={value}" for name, value in labels.items())]


def _reading(ask: Callable[[], _Answer]) -> _Answer:
    try:
        return ask()
    except APIError as cause:
        if (cause.status_code or 0) >= _SERVER_ERROR:
            raise ConnectionError(f"it answered {_words(cause)}") from cause
        raise


def _words(error: APIError) -> str:
    return f"{error.status_code}: {error.explanation or error}"


class DockerCalls:
    """Runs errands in threads. Each thread has a client of its own, kept for the next one while it works."""

    def __init__(self, docker_url: str | None = None, *, max_calls: int = MAX_CALLS) -> None:
        """docker_url None: DOCKER_HOST, else the current docker context, else the local socket."""
        self._url = docker_url
        self._slots = asyncio.Semaphore(max_calls)
        self._max_calls = max_calls
        self._idle: list[docker.DockerClient] = []  # list.append and list.pop are atomic
        self._api_version: str | None = None
        self._address = docker_url or os.environ.get("DOCKER_HOST") or ""  # "": the context's, once connected
        self._abandoned = 0

    @property
    def abandoned_threads(self) -> int:
        """Threads whose call nobody waits for any more and that have not come back yet."""
        return self._abandoned

    @property
    def remote_host(self) -> str | None:
        """The name of the host Docker runs on; None when it is this one."""
        url = urlsplit(self._address)
        here = url.scheme in ("unix", "npipe", "") or url.hostname is None or is_loopback(url.hostname)
        return None if here else url.hostname

    async def run(self, errand: Callable[[Engine], _Answer], *, what: str, deadline_seconds: float) -> _Answer:
        """EngineUnreachable at the deadline at the latest, EngineRefused when Docker says no. The thread may go on."""
        if self._abandoned >= self._max_calls:
            raise self._unreachable(what, f"{self._abandoned} earlier calls hang still; no further one is begun")
        until_seconds = time.monotonic() + deadline_seconds
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._slots.acquire()
                return await self._in_thread(errand, what, until_seconds)
        except TimeoutError as cause:
            hanging = f"; {self._abandoned} earlier calls hang as well" if self._abandoned > 1 else ""
            raise self._unreachable(what, f"no answer within {deadline_seconds:g} s{hanging}") from cause

    async def _in_thread(self, errand: Callable[[Engine], _Answer], what: str, until_seconds: float) -> _Answer:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Answer] = loop.create_future()

        def deliver(answer: _Answer | None, error: BaseException | None) -> None:
            self._slots.release()
            if future.done():
                self._abandoned -= 1
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(answer)  # type: ignore[arg-type]  # without an error there is an answer

        def work() -> None:
            answer, error = None, None
            try:
                answer = self._do(errand, what, until_seconds)
            except DispatcherError as raised:
                error = raised
            except Exception as raised:  # the door: whatever the SDK raises on a strange answer is no answer
                error = self._unreachable(what, in_few_words(raised))
                error.__cause__ = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(deliver, answer, error)

        try:
            # Daemon threads, not an executor: at exit nobody waits for a call that hangs.
            threading.Thread(target=work, name=f"docker {what}", daemon=True).start()
        except RuntimeError:
            self._slots.release()
            raise
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._abandoned += 1
            raise

    def _do(self, errand: Callable[[Engine], _Answer], what: str, until_seconds: float) -> _Answer:
        try:
            client = self._idle.pop()
        except IndexError:
            client = self.connect(max(0.1, (until_seconds - time.monotonic()) * _SDK_SHARE))
        try:
            answer = errand(Engine(client, until_seconds))
        except EngineRefused:
            self._idle.append(client)
            raise
        except APIError as cause:
            self._idle.append(client)
            raise EngineRefused(f"Docker refused to {what}: {_words(cause)}", status=cause.status_code) from cause
        except BaseException:
            self._api_version = None  # it may be another engine next time
            client.close()
            raise
        self._idle.append(client)
        return answer

    def connect(self, timeout_seconds: float) -> docker.DockerClient:
        """Blocks. A client as the docker command makes it, by DOCKER_HOST or context. Raises what the SDK raises."""
        environment = dict(os.environ)
        if self._url is not None:
            environment["DOCKER_HOST"] = self._url
        client = docker.from_env(
            version=self._api_version or "auto",
            timeout=timeout_seconds,  # type: ignore[arg-type]  # requests takes fractions of a second
            environment=environment,
        )
        self._api_version = client.api.api_version
        if "DOCKER_HOST" not in environment:
            context = ContextAPI.get_context(environment.get("DOCKER_CONTEXT"))
            self._address = getattr(context, "Host", None) or ""  # None: a context that is not there
        return client

    def _unreachable(self, what: str, cause: str) -> EngineUnreachable:
        return EngineUnreachable(
            f"Docker could not be asked to {what} ({cause}). What runs goes on; nothing is started or stopped until it "
            "answers. Try: docker version   or set lifecycle.docker_url."
        )

    async def close(self) -> None:
        """Closes idle connections; a call under way keeps its own until it ends."""
        while self._idle:
            self._idle.pop().close()


class _Patient(requests.adapters.BaseAdapter):
    """events() asks for no timeout at all: a silent engine would hold its thread for ever."""

    def __init__(self, inner: requests.adapters.BaseAdapter) -> None:
        super().__init__()
        self._inner = inner

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs["timeout"] = kwargs.get("timeout") or _QUIET_SECONDS
        return self._inner.send(request, *args, **kwargs)

    def close(self) -> None:
        self._inner.close()


class DockerEvents:
    """Calls `changed` in the event loop after every event of a container with our label and these, and after every
    reconnection."""

    def __init__(self, calls: DockerCalls, labels: Mapping[str, str], changed: Callable[[], None]) -> None:
        self._calls = calls
        self._labels = labels
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._closing = threading.Event()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._follow, name="docker events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the stream now. Does not wait for the thread: one that still connects ends by its timeout."""
        self._closing.set()
        if (stream := self._stream) is not None:
            _cut(stream)

    def _follow(self) -> None:
        pause_seconds, lost = _RECONNECT_FIRST_SECONDS / 2, False
        while not self._closing.is_set():
            began_seconds = time.monotonic()
            try:
                self._follow_once(announce=lost)
                lost = False
            except Exception as cause:  # the SDK raises by five libraries; none of it may end the thread
                if not lost and not self._closing.is_set():
                    _log.warning("docker_events=lost cause=%r; looking every few seconds goes on", str(cause))
                lost = True
                lasted = time.monotonic() - began_seconds > _RECONNECT_LAST_SECONDS
                pause_seconds = _RECONNECT_FIRST_SECONDS if lasted else min(_RECONNECT_LAST_SECONDS, pause_seconds * 2)
                self._closing.wait(pause_seconds)

    def _follow_once(self, *, announce: bool) -> None:
        """Until the stream is quiet for a minute (then it returns) or ends (then it raises)."""
        client = self._calls.connect(_RECONNECT_LAST_SECONDS)
        try:
            api = client.api
            api.mount(api.base_url, _Patient(api.get_adapter(api.base_url)))
            self._stream = api.events(
                decode=True, filters={"type": "container", "label": _wanted(self._labels), "event": list(_WAKING)}
            )
            if self._closing.is_set():
                return
            if announce:
                self._announce()
            try:
                for _ in self._stream:
                    self._announce()
            except ReadTimeoutError:
                return
            if not self._closing.is_set():
                raise ConnectionError("the engine ended its event stream")
        finally:
            stream, self._stream = self._stream, None
            if stream is not None:
                _cut(stream)
            client.close()

    def _announce(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._changed)


def _cut(stream: Any) -> None:
    with contextlib.suppress(Exception):  # it digs the socket out of the response's insides, which may be gone already
        stream.close()

"""What a service manager is told (sd_notify(3)), without a library: datagrams to the socket that NOTIFY_SOCKET names.

Without that variable nothing is sent. The loop is never held up: a datagram that cannot be taken now is not sent, and
what matters (READY=1, WATCHDOG=1) is tried again at the next beat.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_log = logging.getLogger("dispatcher")


class Notifier:
    """environment: NOTIFY_SOCKET (a path, or @name for an abstract one), WATCHDOG_USEC, WATCHDOG_PID."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self.watchdog_seconds = _watchdog_seconds(environment) if self._address else None
        self._status, self._serving, self._ready = "", False, False
        self._started = self._reloading = self._stopping = False
        self._pinged_seconds = float("-inf")  # of time.monotonic
        self._reconciled_seconds: float | None = None  # the step that the last ping was for

    def serving(self, status: str) -> None:
        """The sockets are served: READY=1 follows with the first `beat` after the end of a reconcile step."""
        self._status, self._serving = status, True

    def beat(self, reconciled_at_seconds: float | None) -> None:
        """To be called often. reconciled_at_seconds: when the newest reconcile step ended; None: none has.

        WATCHDOG=1 when a step has ended since the last one, at most twice per watchdog interval. A loop that beats is
        not enough: a daemon whose reconciling hangs is of no use, and is to be started again."""
        if reconciled_at_seconds is None:
            return
        if self._serving and not self._ready and not self._reloading:
            self._tell_ready()
        now_seconds = time.monotonic()
        if self.watchdog_seconds is None or reconciled_at_seconds == self._reconciled_seconds:
            return
        if now_seconds - self._pinged_seconds >= self.watchdog_seconds / 2 and self._send("WATCHDOG=1"):
            self._pinged_seconds, self._reconciled_seconds = now_seconds, reconciled_at_seconds

    def stopping(self, status: str, within_seconds: float) -> None:
        """within_seconds: how long it may take, so that open requests are not cut by the manager's own patience. What
        is told from here on is no READY=1 any more: a reload that ends while it leaves is no news."""
        self._stopping = True
        self._send("STOPPING=1", f"STATUS={_line(status)}", f"EXTEND_TIMEOUT_USEC={int(within_seconds * 1e6)}")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Around a reload; however it ends, the daemon is ready again, with the new settings or the old ones. A READY=1
        that is not taken follows with a `beat`: a manager that never hears it takes the service for reloading until it
        loses patience and ends it. Nothing is told before the first READY=1: it would be heard as that one."""
        if not self._started or self._stopping:
            yield
            return
        now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000  # Type=notify-reload: of after its SIGHUP
        begun = ("RELOADING=1", f"MONOTONIC_USEC={now_usec}", "STATUS=reading the configuration again")
        told = self._send(*begun)
        self._reloading, self._ready = True, False
        try:
            yield
        finally:
            self._reloading = False
            if told or self._send(*begun):  # whoever waits for this reload needs both words, in their order
                self._tell_ready()

    def _tell_ready(self) -> None:
        if not self._stopping:
            self._ready = self._send("READY=1", f"STATUS={_line(self._status)}")
            self._started = self._started or self._ready

    def too_impatient(self, step_seconds: float) -> str | None:
        """A warning when the watchdog would bite a daemon whose engine is merely slow. step_seconds: the longest that
        may lie between the ends of two reconcile steps."""
        if self.watchdog_seconds is None or self.watchdog_seconds >= 2 * step_seconds:
            return None
        return (
            f"the service manager's watchdog ({self.watchdog_seconds:g} s) is shorter than two slow reconcile steps; "
            f"set WatchdogSec to at least {2 * step_seconds:.0f}"
        )

    def _send(self, *lines: str) -> bool:
        """True: taken, or nobody listens for it."""
        if not self._address:
            return True
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
                datagrams.setblocking(False)
                datagrams.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            _log.debug("notify=%s not taken: %s", lines[0], error)
            return False
        return True


def _address(named: str) -> str | bytes:
    """Empty: nobody is to be told. Other kinds of sockets (vsock:) are for virtual machines."""
    if named.startswith("@"):
        return b"\0" + os.fsencode(named[1:])
    return named if named.startswith("/") else ""


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """None: no watchdog, or another process' (WATCHDOG_PID)."""
    told, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not told.isdecimal() or int(told) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(told) / 1e6


def _line(text: str) -> str:
    """STATUS is one line."""
    return " ".join(text.split())

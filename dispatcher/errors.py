"""The whole error tree. Library exceptions stop at a wet room's door and leave it as one of these, chained.

    DispatcherError
    ├── ConfigurationInvalid          every problem of a file at once; exit 78
    ├── LooksAway                     something outside could not be asked
    │   ├── PrometheusUnreachable     no answer within the deadline
    │   ├── PrometheusRefused         an answer that is no result (status, error, HTML, garbage)
    │   │   ├── PrometheusUnauthorized    it wants to know who asks (401, 403)
    │   │   └── PrometheusTooLarge        more bytes or series than are taken in
    │   ├── HostUnreadable            this host's own readings failed
    │   └── EngineUnreachable         Docker, Ollama or a model server gave no answer
    ├── EngineRefused                 the engine answered no (its words, its status)
    │   ├── OutOfMemory               the kernel killed it for its memory: its footprint was believed too small
    │   └── PlaceNotOurs              the name is not, or no longer, a declared place: untouchable
    ├── EngineAnswerUnreadable        the engine answered something that is not its protocol
    ├── HistoryUnavailable            the disk is full, locked or broken; nothing was recorded
    └── Refused                       a caller asked for what cannot be given; becomes problem+json
        ├── AskInvalid                the request itself is wrong (400)
        ├── NotFound                  no such decision, lease or model (404)
        └── NotNow                    right, but not in this state (409, 503)

An error names the thing, the value, the consequence and the next step.
"""

from __future__ import annotations

from collections.abc import Iterator


class DispatcherError(Exception):
    """Root of everything this project raises on purpose."""


class ConfigurationInvalid(DispatcherError):
    """Every problem of one configuration, found before anything starts."""

    def __init__(self, problems: list[str], *, path: str = "", unread: bool = False) -> None:
        """unread: it, or a file it names, could not be read just now; what it says is not known, try again."""
        self.problems = problems
        self.path = path
        self.unread = unread
        where = f" in {path}" if path else ""
        super().__init__(f"{len(problems)} problem(s){where}:\n" + "\n".join(f"  {problem}" for problem in problems))


class LooksAway(DispatcherError):
    """Something outside could not be asked. `reason` is a word of UnknownReason."""

    reason = "never_seen"


class PrometheusUnreachable(LooksAway):
    reason = "prom_unreachable"


class PrometheusRefused(LooksAway):
    reason = "prom_error"


class PrometheusUnauthorized(PrometheusRefused):
    """401 or 403: it is there, and wants a key, a tenant or another address to be asked from."""

    reason = "prom_unauthorized"


class PrometheusTooLarge(PrometheusRefused):
    """More bytes or series than are taken in: the expressions match far too much, or it is not what we take it for."""

    reason = "prom_too_large"


class HostUnreadable(LooksAway):
    reason = "host_unreadable"


class EngineUnreachable(LooksAway):
    reason = "engine_unreachable"


class EngineRefused(DispatcherError):
    """The engine answered, and the answer was no."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        self.status = status
        super().__init__(message)


class OutOfMemory(EngineRefused):
    """The container or its model was killed for want of memory while it was loading."""


class PlaceNotOurs(EngineRefused):
    """A name that is not a declared, labelled place. Nothing was done to it."""


class EngineAnswerUnreadable(DispatcherError):
    """The engine's answer is not its protocol; it is treated as no answer."""


class HistoryUnavailable(DispatcherError):
    """Nothing was recorded. /outcomes says 507; choosing goes on without."""


class Refused(DispatcherError):
    """A caller's request that cannot be met; `status` is the HTTP status it becomes."""

    status = 400
    title = "refused"


class AskInvalid(Refused):
    title = "the request is not valid"


class NotFound(Refused):
    status = 404
    title = "not found"


class NotNow(Refused):
    status = 409
    title = "not in this state"

    def __init__(self, message: str, *, status: int = 409, retry_after_seconds: int | None = None) -> None:
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        super().__init__(message)


def error_type_of(error: BaseException) -> str | None:
    """The word dispatcher_errors_total counts it under; None for a caller's own error, which is none of ours."""
    if isinstance(error, Refused):
        return None
    kinds: tuple[tuple[type[DispatcherError], str], ...] = (
        (PrometheusUnreachable, "prometheus_unreachable"),
        (PrometheusRefused, "prometheus_refused"),
        (HostUnreadable, "host_unreadable"),
        (EngineUnreachable, "engine_unreachable"),
        (OutOfMemory, "oom_killed"),
        (PlaceNotOurs, "place_not_ours"),
        (EngineRefused, "engine_refused"),
        (EngineAnswerUnreadable, "engine_answer_unreadable"),
        (HistoryUnavailable, "history_unavailable"),
        (ConfigurationInvalid, "configuration_invalid"),
    )
    return next((word for kind, word in kinds if isinstance(error, kind)), "internal")


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps, outermost first: libraries wrap by `raise from`, in `args` and in `reason`."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, tuple):
            waiting += one
        elif isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]

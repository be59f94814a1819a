"""Why an engine gave no answer, in a few words: libraries wrap the one cause that helps in three that do not."""

from __future__ import annotations

from socket import gaierror

from dispatcher.errors import causes_of

_LETTERS = 200
_USUAL: tuple[tuple[type[BaseException], str], ...] = (
    (FileNotFoundError, "no socket there"),
    (PermissionError, "this user may not use its socket"),
    (ConnectionRefusedError, "nothing listens there"),
    (gaierror, "its name is not known"),
    (TimeoutError, "not within the deadline"),
)


def in_few_words(cause: BaseException) -> str:
    """Its own first line, cut, when the reason is none of the usual."""
    for one in causes_of(cause):
        for kind, words in _USUAL:
            if isinstance(one, kind) or (kind is ConnectionRefusedError and "attempts failed" in str(one)):
                return words  # httpx tells a refused connection by its words only
    lines = str(cause).splitlines() or [type(cause).__name__]
    return lines[0].removeprefix("Error while fetching server API version: ")[:_LETTERS]

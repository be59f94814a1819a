"""A small client of the dispatcher, for programs in Python: which model, call it, say how it went.

    with Dispatcher() as dispatcher:
        answer = dispatcher.generate("Summarise: the meeting is moved to Monday.", task="summarization")
        print(answer.model, answer.text)

`AsyncDispatcher` is the same with await, on asyncio. It needs httpx and nothing else of this repository: the folder may
be copied. What can go wrong, all of it below one root:

    ClientError
    ├── DispatcherUnreachable    no dispatcher answered, in time and whole
    ├── Refused                  it said no: status, problem (its word), detail, request_id
    │   ├── Unauthorized         401 or 403: no key, an unknown one, or one that may not do this
    │   └── NoModel              no usable model now: retry_after_seconds, should_retry, candidates
    └── ModelFailed              no model gave a whole answer: attempts, each with its cause
        └── Truncated            a stream was cut after its first text: what came is not the whole

No message and no repr contains a prompt or an answer. Imports are relative, so that a copy works under any name.
"""

from .answers import Choice, Fallback, Generated, Health, Lease, Model, Predicted, Ranked, Recommendations
from .asynchronous import AsyncDispatcher
from .blocking import Dispatcher
from .generating import AsyncTextStream, TextStream
from .troubles import (
    Attempt,
    ClientError,
    DispatcherUnreachable,
    ModelFailed,
    NoModel,
    Refused,
    Truncated,
    Unauthorized,
)
from .wishes import Ask, Generation, Report, Wishes

__all__ = [
    "Ask",
    "AsyncDispatcher",
    "AsyncTextStream",
    "Attempt",
    "Choice",
    "ClientError",
    "Dispatcher",
    "DispatcherUnreachable",
    "Fallback",
    "Generated",
    "Generation",
    "Health",
    "Lease",
    "Model",
    "ModelFailed",
    "NoModel",
    "Predicted",
    "Ranked",
    "Recommendations",
    "Refused",
    "Report",
    "TextStream",
    "Truncated",
    "Unauthorized",
    "Wishes",
]

"""The labels of all metrics and their words. Cardinality is settled here: a word that is not known becomes `_other`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from dispatcher.vocabulary.action import StopCause
from dispatcher.vocabulary.decision import Rule
from dispatcher.vocabulary.event import STATUSES
from dispatcher.vocabulary.fleet import PlaceState
from dispatcher.vocabulary.relay import CAUSES
from dispatcher.vocabulary.request import COMPLEXITIES, PRIORITIES, TASKS
from dispatcher.vocabulary.signal import SIGNALS, UnknownReason

OTHER = "_other"  # a word outside its vocabulary; also a model that is not configured
NO_MODEL = "_none"  # a decision that named no model

OUTCOMES = ("chosen", "degraded", "fallback", "none")
ERROR_TYPES = (  # the error tree in snake case, and what goes wrong with places
    "prometheus_unreachable",
    "prometheus_refused",
    "host_unreadable",
    "engine_unreachable",
    "engine_refused",
    "engine_answer_unreadable",
    "place_not_ours",
    "history_unavailable",
    "history_broken",
    "configuration_invalid",
    "start_failed",
    "start_refused",
    "start_timeout",
    "load_timeout",
    "stop_failed",
    "stop_refused",
    "stop_timeout",
    "oom_killed",
    "place_crashed",
    "internal",
)


POLL_ERRORS = {  # why a poll of a source failed → the error it is
    "prom_unreachable": "prometheus_unreachable",
    "prom_error": "prometheus_refused",
    "prom_unauthorized": "prometheus_refused",
    "prom_too_large": "prometheus_refused",
    "host_unreadable": "host_unreadable",
    "engine_unreachable": "engine_unreachable",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """values None: the words come from the configuration or the engine, as `origin` says."""

    name: str
    values: tuple[str, ...] | None = None
    origin: str = ""


MODEL = Label(name="model", origin="`models` of the configuration; any other name is `_other`")
DECIDED_MODEL = Label(name="model", origin="as `model`; `_none` when the decision named none")
FROM = Label(name="from", origin=MODEL.origin)
TO = Label(name="to", origin=MODEL.origin)
PLACE = Label(name="place", origin="`docker:<container>` or `ollama:<host>:<port>/<model>`, of the places there are")
VERSION = Label(name="version", origin="what the program says of itself; anything unlike a version is `_other`")
EXPERIMENT = Label(name="experiment", origin="ids of experiments that were started; beyond 100 of them `_other`")
ARM = Label(name="arm", origin="names of an experiment's arms")
STATUS = Label(name="status", values=STATUSES)
TASK = Label(name="task", values=TASKS)
COMPLEXITY = Label(name="complexity", values=COMPLEXITIES)
OUTCOME = Label(name="outcome", values=OUTCOMES)
RULE = Label(name="rule", values=get_args(Rule))
STATE = Label(name="state", values=tuple(state.value for state in PlaceState))
PRIORITY = Label(name="priority", values=PRIORITIES)
STOP_REASON = Label(name="reason", values=get_args(StopCause))
UNKNOWN_REASON = Label(name="reason", values=tuple(reason.value for reason in UnknownReason))
SIGNAL = Label(name="signal", values=SIGNALS)
CAUSE = Label(name="cause", values=(*CAUSES, OTHER))
ERROR_TYPE = Label(name="error_type", values=(*ERROR_TYPES, OTHER))
SAME = Label(name="same", values=("true", "false"))

"""How a request meets the experiments that run: what the desk asks of their owner (daemon.experimenting).

Where none runs it asks nothing: one comparison per request is all an experiment costs those that have none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from dispatcher.experiments.assign import Assigned
from dispatcher.vocabulary.decision import Decision
from dispatcher.vocabulary.request import Request
from dispatcher.vocabulary.world import World


class Experiments(Protocol):
    """Never raises.

    running: whether there is any. assigned: None when none has this request. before: the id of an earlier decision on
    it, whose arm it keeps. decided: told of each real decision, in the order of the leases; world: the one it was made
    in; final: whether it is the answer, and not one of the gateway's tries.
    """

    @property
    def running(self) -> bool: ...

    def assigned(self, request: Request, before: str) -> Assigned | None: ...

    def decided(
        self, decision: Decision, assigned: Assigned | None, world: World, *, leased: bool, final: bool, before: str
    ) -> None: ...


def assigned_by(experiments: Experiments | None, request: Request, before: str) -> Assigned | None:
    return None if experiments is None or not experiments.running else experiments.assigned(request, before)


def in_arm(decision: Decision, assigned: Assigned | None) -> Decision:
    arm = None if assigned is None else assigned.label
    return decision if arm is None else replace(decision, arm=arm)

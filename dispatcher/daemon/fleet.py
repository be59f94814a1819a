"""The owner as the desk knows it: the controller's promises and readiness, behind one value of callables."""

from __future__ import annotations

from dispatcher.desk import Fleet
from dispatcher.lifecycle.controller import Controller


def fleet_of(controller: Controller) -> Fleet:
    tenancy = controller.tenancy
    return Fleet(
        view=tenancy.view,
        reserve=tenancy.reserve,
        end=tenancy.end,
        claim=tenancy.claim,
        unclaim=tenancy.unclaim,
        ready=controller.ready,
        changed=controller.changed,
    )

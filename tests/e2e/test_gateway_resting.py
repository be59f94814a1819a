"""A place that says at once, and says it again, that it cannot now: it looks free, and is not what requests go to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import misconduct
from tests.e2e.gateway_house import API_JSON, PHI, V1_JSON, House, house, new_case

CANNOT_NOW = {
    "429": misconduct.refuses(429, "slow down"),
    "429 with Retry-After": misconduct.refuses(429, "slow down", "Retry-After: 60"),
    "busy": misconduct.refuses(503, misconduct.BUSY),
    "memory": misconduct.refuses(500, misconduct.KILLED),
    "404": misconduct.refuses(404, "model not found"),
}


@pytest.fixture
def there(tmp_path) -> Iterator[House]:
    with house(tmp_path) as one:
        yield one


@pytest.mark.parametrize("what", CANNOT_NOW)
async def test_requests_for_any_model_do_not_all_go_to_it_first(there: House, what: str) -> None:
    case = new_case("resting")
    there.server.script(case, {PHI: CANNOT_NOW[what]})
    first = await there.ask(V1_JSON, case, model="auto")
    if first.attempts == 1:
        there.server.script(case, {first.model: CANNOT_NOW[what]})
    cannot = PHI if first.attempts > 1 else first.model
    before = there.asked(case, cannot)

    got = [await there.ask(V1_JSON, case, model="auto") for _ in range(40)]

    assert {200} == {one.status for one in got}
    assert cannot not in {one.model for one in got}
    assert there.asked(case, cannot) - before <= 3


async def test_who_names_it_is_told_by_it_and_not_by_our_memory(there: House) -> None:
    limited, well = new_case("limited"), new_case("well")
    there.server.script(limited, {PHI: CANNOT_NOW["429 with Retry-After"]})
    rescued = await there.ask(API_JSON, limited)
    assert (200, 2) == (rescued.status, rescued.attempts)

    (await there.ask(API_JSON, well)).assert_answered_by(PHI, attempts=1)
    only = await there.ask(API_JSON, limited, headers={"X-Dispatcher-Fallback": "off"})

    assert (429, 2) == (only.status, there.asked(limited, PHI))

"""The fleet view, built from the owner's records. What has not changed is not built again: it is read per request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dispatcher.control.ledger import Holding, Ledger, reserve_bytes, reserved_bytes
from dispatcher.control.plan import keep_alive_seconds, keep_priority
from dispatcher.lifecycle.promises import Promises
from dispatcher.lifecycle.resident import Resident, Shown, view_of
from dispatcher.policy.predict import load_prior_seconds
from dispatcher.vocabulary.fleet import Breaking, Claim, FleetView, Place, PlaceState, PlaceView
from dispatcher.vocabulary.profile import NO_RATES, Profiles, blended
from dispatcher.vocabulary.settings import LifecycleSettings, Settings
from dispatcher.vocabulary.signal import Snapshot

LOAD_GUESS_SECONDS = 5.0  # until a load was measured here
MAX_KEPT = 1000  # places whose keep-alive is remembered: containers may come and go under new names


@dataclass(frozen=True, slots=True)
class _Built:
    resident: Resident
    holding: Holding | None
    in_flight: int
    breaker: Breaking
    snapshot_number: int
    claim: Claim | None
    view: PlaceView


class Showing:
    def __init__(
        self,
        *,
        settings: Callable[[], Settings],
        profiles: Callable[[], Profiles],
        snapshot: Callable[[], Snapshot],
        in_flight: Callable[[Place], int],
        breaker: Callable[[Place], Breaking],
    ) -> None:
        self._settings = settings
        self._profiles = profiles
        self._snapshot = snapshot
        self._in_flight = in_flight
        self._breaker = breaker
        self._built: dict[Place, _Built] = {}
        self._kept_alive: dict[Place, tuple[tuple[object, ...], float]] = {}
        self._reserved: tuple[Ledger, int] | None = None
        self._pinned_model: str | None = None

    def forget(self, place: Place) -> None:
        """Its leases changed: the next view is built anew."""
        self._built.pop(place, None)

    def forget_all(self) -> None:
        self._built.clear()

    def fleet(
        self,
        *,
        residents: Mapping[Place, Resident],
        ledger: Ledger,
        promises: Promises,
        total_bytes: float | None,
        failing: str | None,
        provider: tuple[str, bool, bool],
        pinned_model: str | None,
        draining: bool,
        now_seconds: float,
    ) -> FleetView:
        """provider: its name, whether it rehearses, whether its places are on this host."""
        rules = self._settings().lifecycle
        snapshot = self._snapshot()
        claims = promises.claims(now_seconds)
        if pinned_model != self._pinned_model:
            self._pinned_model = pinned_model
            self.forget_all()
        capacity = rules.capacity_bytes if rules.capacity_bytes is not None else total_bytes
        if self._reserved is None or self._reserved[0] is not ledger:
            self._reserved = (ledger, reserved_bytes(ledger))
        views = tuple(
            self._current(resident, ledger, promises, claims, snapshot.number, pinned_model, now_seconds)
            for resident in residents.values()
        )
        cpu_count = snapshot.reading("host_cpu_count").value
        return FleetView(
            places=views,
            capacity_bytes=int(capacity) if capacity is not None else None,
            reserve_bytes=reserve_bytes(capacity, rules) if capacity is not None else 0,
            reserved_bytes=self._reserved[1],
            provider=provider[0],
            failing=failing,
            rehearsal=provider[1],
            pinned_model=pinned_model,
            local=provider[2],
            draining=draining,
            host_cpu_count=int(cpu_count) if cpu_count else None,
            claims=claims,
        )

    def _current(
        self,
        resident: Resident,
        ledger: Ledger,
        promises: Promises,
        claims: tuple[Claim, ...],
        snapshot_number: int,
        pinned_model: str | None,
        now_seconds: float,
    ) -> PlaceView:
        """The view built last, if nothing it shows has changed. A starting place's eta moves with the clock: it is
        built each time."""
        place = resident.place
        holding, in_flight, breaker = ledger.holdings.get(place), self._in_flight(place), self._breaker(place)
        claim = next((one for one in claims if place in one.victims), None)
        built = self._built.get(place)
        if (
            built is not None
            and built.resident is resident
            and built.holding is holding
            and built.in_flight == in_flight
            and built.breaker == breaker
            and built.snapshot_number == snapshot_number
            and built.claim is claim
            and resident.state is not PlaceState.STARTING
        ):
            return built.view
        view = self._view(resident, holding, promises, in_flight, breaker, claim, pinned_model, ledger, now_seconds)
        self._built[place] = _Built(resident, holding, in_flight, breaker, snapshot_number, claim, view)
        return view

    def _view(
        self,
        resident: Resident,
        holding: Holding | None,
        promises: Promises,
        in_flight: int,
        breaker: Breaking,
        claim: Claim | None,
        pinned_model: str | None,
        ledger: Ledger,
        now_seconds: float,
    ) -> PlaceView:
        rules, profiles = self._settings().lifecycle, self._profiles()
        place = resident.place
        budget = holding.budget_bytes if holding else 0
        load = self.load_seconds(resident)
        gaps = profiles.idle_gaps_seconds.get(place.model, ())
        container = place.server.removeprefix("docker:")
        return view_of(
            resident,
            Shown(
                leases=len(promises.on(place)),
                leased_until_seconds=promises.until_seconds(place),
                in_flight=in_flight,
                breaker=breaker,
                budget_bytes=budget,
                taken_by=holding.taken_by if holding else None,
                claim=claim,
                pinned=pinned_model == place.model,
                keep_alive_seconds=self._keep_alive_seconds(place, gaps, budget, ledger.room_bytes, load, rules),
                keep_priority=keep_priority(resident.priority_base, profiles, place, budget, load),
                wanted_per_second=profiles.wanted_per_second.get(place.model, 0.0),
                container_cpu=self._snapshot().reading("container_cpu_cores", container),
                busy_cores=rules.busy_cores,
                parallel=rules.num_parallel,
                load_deadline_seconds=self.load_deadline_seconds(resident) if resident.life.down else 0.0,
                now_seconds=now_seconds,
            ),
        )

    def _keep_alive_seconds(
        self,
        place: Place,
        gaps: tuple[float, ...],
        budget_bytes: int,
        room_bytes: int | None,
        load_seconds: float,
        rules: LifecycleSettings,
    ) -> float:
        """As worked out last, if it is for the same: going through 200 gaps took half of the time of a view."""
        of = (gaps, budget_bytes, room_bytes, load_seconds, rules)
        known = self._kept_alive.get(place)
        if known is None or any(one is not other and one != other for one, other in zip(known[0], of, strict=True)):
            if len(self._kept_alive) >= MAX_KEPT:
                self._kept_alive.clear()
            known = self._kept_alive[place] = (of, keep_alive_seconds(*of))
        return known[1]

    def load_seconds(self, resident: Resident) -> float:
        """Measured here, else learned, else a guess: for etas and keep-alive, never for a refusal."""
        if resident.load_seconds is not None:
            return resident.load_seconds
        learned = self._profiles().rates.get(resident.place, NO_RATES).load_seconds.value
        return learned if learned is not None else LOAD_GUESS_SECONDS

    def load_deadline_seconds(self, resident: Resident) -> float:
        """Three times what a load is predicted to take here, at least the configured time."""
        settings, profiles, place = self._settings(), self._profiles(), resident.place
        predicted = [resident.load_seconds or 0.0]
        stated = next((one for one in settings.models if one.name == place.model), None)
        if stated is not None:
            prior = load_prior_seconds(
                profiles.facts.get(place.model) or stated.facts(), stated.load_seconds, profiles.host_speed
            )
            predicted.append(blended(profiles.rates.get(place, NO_RATES).load_seconds, prior))
        return max(settings.lifecycle.load_timeout_seconds, 3 * max(predicted))

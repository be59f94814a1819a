"""What is looked at, and through which engine models are moved: providers and telemetry sources, by the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dispatcher.clock import Clock
from dispatcher.control.tally import Tally
from dispatcher.lifecycle.auto_provider import AutoProvider
from dispatcher.lifecycle.docker_provider import DockerProvider
from dispatcher.lifecycle.engine_calls import EngineCalls
from dispatcher.lifecycle.none_provider import NoneProvider
from dispatcher.lifecycle.ollama_provider import OllamaProvider
from dispatcher.lifecycle.provider import Provider
from dispatcher.rehearsal.host import SimulatedHost
from dispatcher.rehearsal.provider import RehearsalProvider
from dispatcher.telemetry.engine_source import EngineSource
from dispatcher.telemetry.gpu_probe import GpuProbe
from dispatcher.telemetry.host_source import HostSource
from dispatcher.telemetry.prometheus_source import PrometheusSource
from dispatcher.telemetry.source import Source
from dispatcher.vocabulary.engine import EngineSeen
from dispatcher.vocabulary.settings import Settings


class Eyes:
    """has_file: a configuration file was given; without one, and only then, rehearsal may stand in.

    saw_real: whether a real place was ever seen here, in this run or an earlier one. had: the provider it was at, last.
    """

    def __init__(
        self,
        *,
        settings: Callable[[], Settings],
        clock: Clock,
        tally: Tally,
        scrape_interval_seconds: Callable[[], float | None],
        known_places: Callable[[], int],
        has_file: bool,
        saw_real: Callable[[], bool],
        had: Callable[[], str | None],
        erred: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._erred = erred
        self._tally = tally
        self._docker: DockerProvider | None = None
        self._ollama: OllamaProvider | None = None
        self._simulated_host: SimulatedHost | None = None
        self._rehearsal_calls = EngineCalls()
        self._engines = EngineSource(clock=clock)
        self._gpu = GpuProbe("host")
        self._host = HostSource(clock=clock, gpu=self._gpu)
        self.prometheus = PrometheusSource(
            settings, scrape_interval_seconds=scrape_interval_seconds, known_places=known_places
        )
        self.provider = self._provider(has_file, saw_real, had)

    async def look(self, endpoint: str, *, deadline_seconds: float = 2.0, details: bool = True) -> EngineSeen:
        """Telemetry's eyes for lifecycle; what is seen of models is learned on the way."""
        seen = await self._engines.look(endpoint, deadline_seconds=deadline_seconds, details=details)
        for model in seen.shapes.keys() | (seen.installed or {}).keys():
            self._tally.learn_facts(seen.shapes.get(model), (seen.installed or {}).get(model))
        return seen

    def sources(self) -> Sequence[Source]:
        """Rehearsal has a simulated host of its own; readings of this host stand in only for places on it."""
        if self.provider.rehearsal and self._simulated_host is not None:
            return (self._simulated_host,)
        telemetry = self._settings().telemetry
        sources: list[Source] = []
        if telemetry.prometheus.enabled != "false":
            sources.append(self.prometheus)
        if telemetry.host_enabled and self.provider.local:
            sources.append(self._host)
        return sources

    def apply(self, settings: Settings) -> None:
        """What the providers keep of the settings, again after a reload; the sources ask for theirs at every poll."""
        for provider in (self._docker, self._ollama):
            if provider is not None:
                provider.apply(settings.lifecycle)

    def abandoned_threads(self) -> int:
        """Threads in calls that nobody waits for any more and that have not come back."""
        of_docker = self._docker.abandoned_threads if self._docker else 0
        return self.prometheus.abandoned_threads + self._gpu.abandoned_threads + of_docker

    async def close(self) -> None:
        await self.provider.close()
        await self._rehearsal_calls.close()
        await self._engines.close()
        await self._host.close()
        self.prometheus.close()

    def _provider(self, has_file: bool, saw_real: Callable[[], bool], had: Callable[[], str | None]) -> Provider:
        rules = self._settings().lifecycle
        names = [model.name for model in self._settings().models]
        match rules.provider:
            case "ollama":
                self._ollama = OllamaProvider(rules, names, self.look)
                return self._ollama
            case "none":
                return NoneProvider()
            case "rehearsal":
                return self._rehearse()
        self._docker = DockerProvider(rules, self.look)
        if rules.provider == "docker":
            return self._docker
        self._ollama = OllamaProvider(rules, names, self.look)
        return AutoProvider(
            self._docker,
            self._ollama,
            rehearsal=None if has_file else self._rehearse,
            saw_real=saw_real,
            had=had,
            erred=self._erred,
        )

    def _rehearse(self) -> Provider:
        settings = self._settings()
        simulated = RehearsalProvider(
            settings.models,
            settings.rehearsal,
            load=self._rehearsal_calls.load,
            look=self.look,
            num_parallel=settings.lifecycle.num_parallel,
        )
        self._simulated_host = SimulatedHost(settings.rehearsal, simulated.loaded_bytes)
        return simulated

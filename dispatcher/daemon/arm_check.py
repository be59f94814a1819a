"""What is wrong with an experiment's arm, by the configuration's own rules: they are not written twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from dispatcher.config.checks import disagreements, out_of_range
from dispatcher.config.schema import every_setting, value_at
from dispatcher.experiments.specification import Check
from dispatcher.vocabulary.settings import Settings

_POLICY = "policy."


def arm_check(in_force: Callable[[], Settings], environ: Mapping[str, str]) -> Check:
    """Only what the arm itself brings: the settings in force were checked when they came."""

    def check(settings: Settings) -> Iterable[str]:
        known = set(_troubles(in_force(), environ))
        return [words for words in _troubles(settings, environ) if words not in known]

    return check


def _troubles(settings: Settings, environ: Mapping[str, str]) -> Iterator[str]:
    for setting in every_setting():
        if setting.path.startswith(_POLICY):
            value = value_at(settings, setting.path)
            for one in value if isinstance(value, tuple) else (value,):
                if (words := out_of_range(setting, one)) is not None:
                    yield f"{setting.path}: {words}"
    yield from (words for _, words in disagreements(settings, environ))

"""What the configuration has to say against a text."""

from __future__ import annotations

import pytest

from dispatcher import config
from dispatcher.errors import ConfigurationInvalid


def problems_of(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationInvalid) as caught:
        config.parse(text, environ or {})
    return caught.value.problems

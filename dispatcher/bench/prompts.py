"""What the models are asked: a fixed set shipped with the package, or a file of the same form.

Fixed, because two runs can be compared prompt by prompt only when both had the same. Each bounds its answer, so that a
talkative model is measured by its speed and not by its patience.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from dispatcher.vocabulary.request import COMPLEXITIES, TASKS
from dispatcher.vocabulary.words import meant, shortened

MAX_PROMPTS = 500
MAX_FILE_BYTES = 4 * 1024**2
MAX_OUTPUT_TOKENS = 4096
_FIELDS = ("name", "task", "complexity", "output_tokens", "text")


class PromptsInvalid(ValueError):
    """The file is no set of prompts. Its text names every problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """output_tokens: where the answer is cut at the latest (num_predict). name: stands in results, its text never."""

    name: str
    text: str
    output_tokens: int
    task: str = "general"
    complexity: str = "moderate"


def shipped() -> tuple[Prompt, ...]:
    return read(files("dispatcher.bench").joinpath("prompts.json").read_text(encoding="utf-8"))


def from_file(path: Path) -> tuple[Prompt, ...]:
    """Raises PromptsInvalid, also for a file that cannot be read."""
    try:
        with path.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PromptsInvalid(f"{path.name} cannot be read ({error.strerror or error})") from error
    if len(content) > MAX_FILE_BYTES:
        raise PromptsInvalid(f"{path.name} has more than {MAX_FILE_BYTES} bytes")
    try:
        return read(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise PromptsInvalid(f"{path.name} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def read(text: str) -> tuple[Prompt, ...]:
    """{"prompts": [{"name", "text", "output_tokens", "task"?, "complexity"?}, …]}."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptsInvalid(f"the prompts are no JSON ({error})") from error
    listed = told.get("prompts") if isinstance(told, dict) else None
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_PROMPTS:
        raise PromptsInvalid(f'expected {{"prompts": [...]}} with 1 to {MAX_PROMPTS} prompts')
    problems = [words for at, each in enumerate(listed, 1) for words in _problems(f"prompt {at}", each)]
    names = Counter(str(each.get("name")) for each in listed if isinstance(each, dict))
    problems += [f"{shortened(name)}: the name is there {count} times" for name, count in names.items() if count > 1]
    if problems:
        raise PromptsInvalid("; ".join(problems[:10]))
    return tuple(Prompt(**each) for each in listed)


def digest(prompts: Sequence[Prompt]) -> str:
    """The same for the same prompts in any order; what a result says instead of their texts."""
    rows = sorted(f"{each.name}\0{each.text}\0{each.output_tokens}" for each in prompts)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:12]


def _problems(where: str, each: Any) -> list[str]:
    if not isinstance(each, dict):
        return [f"{where}: expected an object"]
    unknown = [key for key in each if key not in _FIELDS]
    problems = [f"{where}: no such field {shortened(key)}{meant(key, _FIELDS)}" for key in unknown]
    name, tokens = each.get("name"), each.get("output_tokens")
    if not isinstance(name, str) or not name.strip() or len(name) > 80 or not name.isprintable():
        problems.append(f"{where}: name must be a text of at most 80 visible characters")
    if not isinstance(each.get("text"), str) or not each["text"].strip():
        problems.append(f"{where}: text must not be empty")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 < tokens <= MAX_OUTPUT_TOKENS:
        problems.append(f"{where}: output_tokens must be a whole number of 1 to {MAX_OUTPUT_TOKENS}")
    for field, known in (("task", TASKS), ("complexity", COMPLEXITIES)):
        if field in each and each[field] not in known:
            problems.append(f"{where}: {field} {shortened(str(each[field]))} is none of {', '.join(known)}")
    return problems

r"""Our held-out prompts, of another style than the training data (issues, chats, n8n, agents); nothing is trained on
them. `== task`, then a prompt per line; \n stands for a line break."""

from __future__ import annotations

from pathlib import Path

HELD_OUT = Path(__file__).parent / "classify_held_out.txt"
BLIND = Path(__file__).parent / "classify_blind.txt"  # written before its author had read the classifier or its data
COMPLEXITY = (
    Path(__file__).parent / "classify_complexity.txt"
)  # `== complexity`; part of the blind prompts, and vague ones


def prompts(path: Path) -> list[tuple[str, str]]:
    """(prompt, task) each."""
    found, task = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            task = line[3:].strip()
        elif line.strip():
            found.append((line.replace("\\n", "\n"), task))
    return found

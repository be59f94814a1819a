"""How long `classify` takes per prompt, and what the weights weigh: `scripts/bench classify`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

from dispatcher.policy import classify_weights
from dispatcher.policy.classify import READ_CHARACTERS, classify
from dispatcher.vocabulary.request import Asked
from tests.policy.held_out import HELD_OUT, prompts

ROUNDS = 20
P50_SECONDS, P99_SECONDS, WEIGHTS_BYTES = 150e-6, 1.5e-3, 400_000


def seconds_of_each(texts: Sequence[str], rounds: int) -> list[float]:
    """Sorted."""
    taken = []
    for number in range(rounds):
        for text in texts:
            asked = Asked(text=text)
            began = time.perf_counter()
            classify(asked, request_id=f"d-{number}", at_seconds=0.0)
            taken.append(time.perf_counter() - began)
    return sorted(taken)


@click.command("classify")
@click.option("--rounds", default=ROUNDS, show_default=True, help="How often each prompt is classified.")
@click.option(
    "--prompts", "folder", type=click.Path(path_type=Path, exists=True), help="*.txt, a prompt each, as well."
)
def classifying(rounds: int, folder: Path | None) -> None:
    """One prompt to its features, without HTTP: our held-out prompts, and the same made 2,000 characters long."""
    texts = [text for text, _ in prompts(HELD_OUT)]
    if folder is not None:
        texts += [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    full = [((text + "\n") * READ_CHARACTERS)[:READ_CHARACTERS] for text in texts]
    joined = " ".join(texts)
    mixed = [joined[at : at + READ_CHARACTERS] for at in range(0, max(1, len(joined) - READ_CHARACTERS), 500)]
    for name, kind in (("as they are", texts), ("repeated to 2,000", full), ("2,000 of different words", mixed)):
        taken = seconds_of_each(kind, rounds)
        p50, p99 = taken[len(taken) // 2], taken[int(len(taken) * 0.99)]
        met = "met" if p50 <= P50_SECONDS and p99 <= P99_SECONDS else "NOT met"
        click.echo(
            f"classify, {name:26} p50 {p50 * 1e6:6.0f} us   p99 {p99 * 1e6:6.0f} us   "
            f"aim <= {P50_SECONDS * 1e6:.0f} and {P99_SECONDS * 1e6:.0f} us: {met}"
        )
    size = Path(classify_weights.__file__).stat().st_size
    click.echo(f"weights {size / 1000:.0f} kB   aim <= 400 kB: {'met' if size <= WEIGHTS_BYTES else 'NOT met'}")

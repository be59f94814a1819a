"""What is asked of the simulated machine: when, with which words, for how long an answer, and how good each model is.

A trace says when and how long; prompt files say what. Without them a synthetic week of the same shape is made.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dispatcher.replay.asks import Noise
from dispatcher.vocabulary.request import Task
from tests.bench.simulated import Job

ROWS = 2_000
MEAN_GAP_SECONDS = 60.0
TRACE, PROMPTS = "traces/mooncake_conversation.jsonl", "prompts"
CHARACTERS_PER_TOKEN = 4.0

# How good the answers of each model truly are, 0..1. The policy reads none of this: it is told a noisy report of each
# answer, as a caller would give it, and sees the words of the prompt, not the kind.
QUALITY: Mapping[Task, Mapping[str, float]] = {
    "coding": {"phi3:mini": 0.38, "llama3.2:3b": 0.46, "qwen2.5:7b": 0.85},
    "analysis": {"phi3:mini": 0.45, "llama3.2:3b": 0.64, "qwen2.5:7b": 0.82},
    "planning": {"phi3:mini": 0.35, "llama3.2:3b": 0.42, "qwen2.5:7b": 0.80},
    "general": {"phi3:mini": 0.55, "llama3.2:3b": 0.68, "qwen2.5:7b": 0.80},
}
REPORT_SIGMA = 0.2

_KINDS: Mapping[str, Task] = {  # of the prompt files' own labels; what is not named is general
    "humaneval": "coding",
    "gsm8k_200": "analysis",
    "biggen planning": "planning",
    "biggen reasoning": "analysis",
    "biggen theory_of_mind": "analysis",
    "mt_bench coding": "coding",
    "mt_bench math": "analysis",
    "mt_bench reasoning": "analysis",
    "mt_bench stem": "analysis",
}
_WORDS: Mapping[Task, tuple[str, ...]] = {
    "coding": (
        "Write a Python function that merges two sorted lists of {} into one sorted list and returns it.",
        "Implement a class in Java for a queue of {} with methods to push, pop and count.",
    ),
    "analysis": (
        "Tom has 12 {}, gives a third of them to Ann and buys twice as many. How many does he have? Explain the steps.",
        "Compare the advantages of renting {} with those of buying them, and explain which factor matters most.",
    ),
    "planning": (
        "Create a step by step plan for the next four weeks to open a shop for {}, with milestones and risks.",
        "Make a schedule for a team of three that has to deliver {} by the end of the quarter.",
    ),
    "general": (
        "What is the capital of the country that makes the most {}?",
        "Tell me a short story about a man who collects {}.",
    ),
}
_THINGS = ("bicycles", "apples", "tickets", "houses", "lamps", "books", "engines", "maps", "shoes", "clocks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One request as it truly is. number: its place in the workload; chance of its own comes from it."""

    number: int
    at_seconds: float  # since the beginning
    text: str
    kind: Task
    job: Job
    report_noise: float  # of the caller's judgement
    unlucky: float  # 0..1; below the failure rate of who answers first, that answer is an error


def from_files(folder: Path, *, rows: int = ROWS, seed: int = 7, spread: bool = False) -> list[Piece]:
    """spread: the trace's times are whole steps of 3 s, nine requests in each; with it they are spread over theirs,
    as they were before somebody rounded them."""
    told = [json.loads(line) for line in (folder / TRACE).read_text("utf-8").splitlines()[:rows]]
    chance = random.Random(f"times {seed}")
    raw = [row["timestamp"] + (chance.uniform(0, 3000) if spread else 0) for row in told]
    if spread:
        raw.sort()
    stretch = MEAN_GAP_SECONDS * (len(raw) - 1) / (raw[-1] - raw[0])
    times = [(at - raw[0]) * stretch for at in raw]
    return pieces(times, [row["output_length"] for row in told], sorted(prompts(folder / PROMPTS)), seed)


def synthetic(count: int, seed: int) -> list[Piece]:
    """Bursts of a few within a minute or so, a while of nothing; answers of 10 to 700 tokens."""
    chance = random.Random(f"synthetic {seed}")
    at, times, lengths = 0.0, [], []
    while len(times) < count:
        for _ in range(chance.randint(1, 6)):
            times.append(at)
            at += chance.expovariate(1 / 15.0)
            lengths.append(round(min(1200.0, max(8.0, chance.lognormvariate(5.6, 0.7)))))
        at += chance.expovariate(1 / 150.0)
    stretch = MEAN_GAP_SECONDS * (count - 1) / times[count - 1]
    asked = [
        (template.format(thing) + tail, kind)
        for kind, templates in _WORDS.items()
        for template in templates
        for thing in _THINGS
        for tail in ("", " Background: it was a quiet morning in the old town, and nobody was there yet." * 6)
    ]
    return pieces([at * stretch for at in times[:count]], lengths[:count], asked, seed)


def pieces(times: Sequence[float], lengths: Sequence[int], asked: Sequence[tuple[str, Task]], seed: int) -> list[Piece]:
    made = []
    for number, (at, length) in enumerate(zip(times, lengths, strict=True)):
        chance = random.Random(f"piece {seed} {number}")
        text, kind = chance.choice(asked)
        cached = chance.random() < 0.1  # the server has most of this prompt from before
        prefill = chance.lognormvariate(0.0, 0.25) * (0.1 if cached else 1.0)
        noise = Noise(prefill_factor=prefill, decode_factor=chance.lognormvariate(0.0, 0.2))
        tokens = max(1, round(len(text) / CHARACTERS_PER_TOKEN * chance.lognormvariate(0.0, 0.15)))
        made.append(
            Piece(
                number=number,
                at_seconds=at,
                text=text,
                kind=kind,
                job=Job(prompt_tokens=tokens, output_tokens=max(1, length), noise=noise),
                report_noise=chance.gauss(0.0, REPORT_SIGMA),
                unlucky=chance.random(),
            )
        )
    return made


def prompts(folder: Path) -> Iterable[tuple[str, Task]]:
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            turns = row.get("turns") or [None]
            text = row.get("input") or row.get("question") or row.get("prompt") or row.get("instruction") or turns[0]
            label = row.get("capability") or row.get("category")
            yield text, _KINDS.get(f"{file.stem} {label}" if label else file.stem, "general")

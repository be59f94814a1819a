"""The linear model behind the rules: which task the words of a prompt point to, how surely, and which words did it.

The prompt is judged as a whole, and each sentence by itself, counted by how sure it is: what is asked mostly
stands in one or two sentences; the others (an article, thanks, a log) say little of the task.

Weights are whole numbers, summed as whole numbers: the same prompt gets the same answer in every process, whatever
order a set has there. Nine sums are one sum: the nine weights of a feature lie side by side in one integer, sixteen
bits each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from dispatcher.policy import classify_weights
from dispatcher.policy.classify_features import features, sentences, without_code
from dispatcher.vocabulary.request import TASKS, Task

SENTENCES_SHARE = 0.4  # of the answer; the rest is the prompt's as a whole
WARMTH = 2.0  # scores are divided by this before they become probabilities: one sentence is little evidence
_BITS = 16
_MASK = (1 << _BITS) - 1
_ZERO = (classify_weights.LAST - classify_weights.FIRST) // 2  # what is added to a weight so that none is negative
_SLIGHT = 2  # weights up to this are not worth a word
_SHIFTS = tuple(_BITS * place for place in range(len(TASKS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """confidence_ratio: the model's probability of this task, 0..1. because: the heaviest words for it, at most three,
    each with its share of the score; they are the model's words, found in the prompt."""

    task: Task
    confidence_ratio: float
    because: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """packed: the nine weights of each feature, in units of step; biases: one per task."""

    packed: Mapping[str, int]
    known: frozenset[str]
    step: float
    biases: Sequence[float]


def guess(text: str, model: Linear | None = None) -> Guess | None:
    """text: in lower case, already cut. model: another one than ours, for training. None: it knows no word of it."""
    model = model or OURS
    text = without_code(text)
    whole = features(text) & model.known
    if not whole:
        return None
    chances = _chances(whole, model)
    parts = sentences(text)
    if len(parts) > 1:
        pooled = _pooled(parts, model)
        chances = [
            SENTENCES_SHARE * one + (1 - SENTENCES_SHARE) * all_ for one, all_ in zip(pooled, chances, strict=True)
        ]
    best = max(chances)
    place = chances.index(best)
    return Guess(task=cast(Task, TASKS[place]), confidence_ratio=min(1.0, best), because=_heaviest(whole, place, model))


def _pooled(parts: Sequence[str], model: Linear) -> list[float]:
    """The chances of each sentence, weighed by how sure it is."""
    pooled, weight_in_all = [0.0] * len(TASKS), 0.0
    for part in parts:
        if known := features(part) & model.known:
            chances = _chances(known, model)
            weight = max(chances) ** 4
            weight_in_all += weight
            pooled = [so_far + weight * chance for so_far, chance in zip(pooled, chances, strict=True)]
    return [chance / weight_in_all for chance in pooled] if weight_in_all else [1 / len(TASKS)] * len(TASKS)


def _chances(known: set[str], model: Linear) -> list[float]:
    packed = sum(map(model.packed.__getitem__, known))
    unit = model.step / math.sqrt(len(known)) / WARMTH
    zero = _ZERO * len(known)
    powers = [
        math.exp(bias / WARMTH + unit * (((packed >> shift) & _MASK) - zero))
        for shift, bias in zip(_SHIFTS, model.biases, strict=True)
    ]
    total = sum(powers)
    return [power / total for power in powers]


def _heaviest(known: set[str], place: int, model: Linear) -> tuple[tuple[str, float], ...]:
    shift, packed = _SHIFTS[place], model.packed
    weighed = [(weight, name) for name in known if (weight := (packed[name] >> shift) & _MASK) > _ZERO + _SLIGHT]
    weighed.sort(reverse=True)
    unit = model.step / math.sqrt(len(known))
    return tuple((name, unit * (weight - _ZERO)) for weight, name in weighed[:3])


def unpacked(lines: Sequence[str], step: float, biases: Sequence[float]) -> Linear:
    """Each entry: one character per task, then the feature. Raises ValueError for a character that is no weight."""
    width, first, span = len(TASKS), classify_weights.FIRST, classify_weights.LAST - classify_weights.FIRST
    found: dict[str, int] = {}
    for line in lines:
        for entry in line.split(classify_weights.BETWEEN):
            packed = 0
            for character in reversed(entry[:width]):
                weight = ord(character) - first
                if not 0 <= weight <= span:
                    raise ValueError(f"weights: {character!r} stands for no weight")
                packed = packed << _BITS | weight
            found[entry[width:]] = packed
    return Linear(packed=found, known=frozenset(found), step=step, biases=biases)


OURS = unpacked(classify_weights.LINES, classify_weights.STEP, classify_weights.BIASES)

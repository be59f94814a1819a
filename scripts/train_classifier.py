"""Trains the linear model of dispatcher/policy/classify and writes dispatcher/policy/classify_weights.py.

    python scripts/train_classifier.py --data FOLDER --evaluate   whole files held out in turn, and our held-out sets
    python scripts/train_classifier.py --data FOLDER --write      trains on everything but those sets, and writes
    python scripts/train_classifier.py --data FOLDER --check      the same; exit 1 where the weights in the tree differ

The only place that needs scikit-learn (pip install scikit-learn; versions: docs/classifier.md). FOLDER holds the public
prompt files; they are not in the repository. Which task each of their rows is stands in scripts/classifier/labels.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dispatcher.policy.classify import LEAST_CONFIDENCE_RATIO, ruled  # noqa: E402
from dispatcher.policy.classify_features import features, without_code  # noqa: E402
from dispatcher.policy.classify_model import guess, unpacked  # noqa: E402
from dispatcher.vocabulary.request import TASKS  # noqa: E402

READ_CHARACTERS = 2000
FIRST, LAST, BETWEEN = 35, 91, "~"  # a weight is one of the characters # … [
MAX_LINE = 1100
LEAST_ROWS = 2  # features of fewer rows are left out; a phrase of our own counts as two
HARDNESS = 15.0  # C of the logistic regression
ROWS_PER_SOURCE = 60.0  # what one task of one public file counts at most: 200 sums are no 200 kinds of question
OWN_ROW, PHRASE, PATTERN = 4.0, 1.5, 0.5
FILLINGS = 3  # of each pattern
EVENNESS = 0.6  # 1: every task counts the same however many rows it has; 0: every row does
# Added to their biases: hardly a public row is of these tasks, so training finds them rarer than they are asked for.
LEAN = {"testing": 0.6, "documentation": 0.2, "summarization": 0.2}
WEIGHTS = ROOT / "dispatcher" / "policy" / "classify_weights.py"
HELD_OUT = {
    "held out": ROOT / "tests" / "policy" / "classify_held_out.txt",
    "blind": ROOT / "tests" / "policy" / "classify_blind.txt",
}
FOLDER = ROOT / "scripts" / "classifier"


SLOT = re.compile(r"\{(\w+)\}")


class Row(NamedTuple):
    text: str
    task: str
    source: str


class Model(NamedTuple):
    vocabulary: dict[str, int]
    weights: Any  # tasks × features
    biases: Any


def own_rows(path: Path, source: str) -> list[Row]:
    """`== task`, then a prompt per line (\\n for a line break), or phrases between bars."""
    rows, task = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            task = line[3:].strip()
        elif source == "phrase":
            rows += [Row(phrase.strip(), task, source) for phrase in line.split("|") if phrase.strip()]
        elif line.strip():
            rows.append(Row(line.replace("\\n", "\n"), task, source))
    return rows


def pattern_rows(path: Path) -> list[Row]:
    """`== {slot}`: what may stand in it, between bars; `== task`: a pattern per line, filled FILLINGS times, in turn.

    Every task is said of the same things: code, logs, articles, mails and tables stand in all of them, and so say
    little of any."""
    fillings: dict[str, list[str]] = {}
    turns: Counter[str] = Counter()
    rows, heading = [], ""

    def filling(slot: re.Match[str]) -> str:
        turns[slot[1]] += 1
        return fillings[slot[1]][turns[slot[1]] % len(fillings[slot[1]])]

    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            heading = line[3:].strip()
        elif heading.startswith("{"):
            fillings[heading.strip("{}")] = line.split("|")
        elif line.strip():
            filled = dict.fromkeys(SLOT.sub(filling, line).replace("\\n", "\n") for _ in range(FILLINGS))
            rows += [Row(text, heading, "pattern") for text in filled]
    return rows


def prompt_of(source: str, row: dict[str, Any]) -> str:
    if source == "mt_bench":
        return str(row["turns"][0])
    if "instruction" in row:
        given = row["instances"][0]["input"] if row["instances"] else ""
        return f"{row['instruction']}\n{given}".rstrip("\n")
    return str(row.get("question") or row.get("prompt") or row["input"])


def public_rows(folder: Path) -> list[Row]:
    labels = json.loads((FOLDER / "labels.json").read_text(encoding="utf-8"))
    found = []
    for source, told in labels.items():
        if source == "about":
            continue
        by_row = {number: task for task, numbers in told.get("by_row", {}).items() for number in numbers}
        for number, line in enumerate((folder / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()):
            row = json.loads(line)
            usual = told["by_key"][row[told["key"]]] if "key" in told else told["default"]
            task = by_row.get(number, usual)
            if task in TASKS:
                found.append(Row(prompt_of(source, row), task, source))
    return found


def seen_in(row: Row) -> list[str]:
    return sorted(features(without_code(row.text[:READ_CHARACTERS].lower())))


def matrix(seen: Iterable[Sequence[str]], vocabulary: dict[str, int]) -> Any:
    """A row per prompt, of length one: many words are no more of anything than few."""
    begins, columns, values = [0], [], []
    for names in seen:
        known = [vocabulary[name] for name in names if name in vocabulary]
        columns += known
        values += [1 / max(1, len(known)) ** 0.5] * len(known)
        begins.append(len(columns))
    return csr_matrix((values, columns, begins), shape=(len(begins) - 1, len(vocabulary)))


def row_weights(rows: Sequence[Row]) -> Any:
    """As said above."""
    many = Counter((row.source, row.task) for row in rows)
    kinds = {"own": OWN_ROW, "phrase": PHRASE, "pattern": PATTERN}
    weights = np.array(
        [kinds.get(row.source, min(1.0, ROWS_PER_SOURCE / many[row.source, row.task])) for row in rows], dtype=float
    )
    tasks = np.array([row.task for row in rows])
    for task in set(tasks):
        weights[tasks == task] /= weights[tasks == task].sum() ** EVENNESS
    return weights / weights.mean()


def trained(rows: Sequence[Row]) -> Model:
    """Weights in whole steps, as they will be written: what is measured is what will run."""
    seen = [seen_in(row) for row in rows]
    many: Counter[str] = Counter()
    for names, row in zip(seen, rows, strict=True):
        for name in names:
            many[name] += LEAST_ROWS if row.source == "phrase" else 1
    names = sorted(name for name, count in many.items() if count >= LEAST_ROWS and BETWEEN not in name)
    vocabulary = {name: place for place, name in enumerate(names)}
    fit = LogisticRegression(C=HARDNESS, max_iter=200, tol=1e-3)
    fit.fit(matrix(seen, vocabulary), [row.task for row in rows], sample_weight=row_weights(rows))
    weights, biases = np.zeros((len(TASKS), len(names))), np.full(len(TASKS), -9.0)
    for place, task in enumerate(fit.classes_):
        weights[TASKS.index(task)], biases[TASKS.index(task)] = fit.coef_[place], fit.intercept_[place]
    biases += [LEAN.get(task, 0.0) for task in TASKS]
    step = step_of(weights)
    steps = np.clip(np.rint(weights / step), -((LAST - FIRST) // 2), (LAST - FIRST) // 2)
    return Model(vocabulary, steps * step, np.round(biases, 3))


def step_of(weights: Any) -> float:
    """The heaviest thousandth is cut off, so that the others keep their differences."""
    return float(np.round(np.quantile(np.abs(weights), 0.999) / ((LAST - FIRST) // 2), 4))


def guesses(model: Model, rows: Sequence[Row]) -> list[str]:
    """With the daemon's own code, of weights as they are written."""
    running = unpacked(lines_of(model), step_back(model), list(model.biases))
    told = [guess(row.text[:READ_CHARACTERS].lower(), running) for row in rows]
    return [one.task if one and one.confidence_ratio >= LEAST_CONFIDENCE_RATIO else "general" for one in told]


def accuracy(told: Sequence[str], rows: Sequence[Row]) -> float:
    return sum(task == row.task for task, row in zip(told, rows, strict=True)) / len(rows)


def table(told: Sequence[str], rows: Sequence[Row]) -> str:
    """Precision and recall of each task."""
    lines = []
    for task in TASKS:
        hits = sum(said == task == row.task for said, row in zip(told, rows, strict=True))
        said, true = told.count(task), sum(row.task == task for row in rows)
        if said or true:
            lines.append(
                f"    {task:14} precision {hits / max(1, said):.2f}  recall {hits / max(1, true):.2f}  rows {true}"
            )
    return "\n".join(lines)


def by_length(train: Sequence[Row], test: Sequence[Row]) -> float:
    """What the number of characters alone would give: the most frequent task among the 25 rows nearest in length."""
    told = []
    for row in test:
        near = sorted(train, key=lambda other: abs(len(other.text) - len(row.text)))[:25]
        told.append(Counter(other.task for other in near).most_common(1)[0][0])
    return accuracy(told, test)


def evaluate(public: Sequence[Row], own: Sequence[Row], held_out: Mapping[str, Sequence[Row]]) -> None:
    """Whole files are held out, never rows. `ours` is what the daemon says: rules, then the model, then the cut."""
    files = list(dict.fromkeys(row.source for row in public))
    all_told: list[str] = []
    tested: list[Row] = []
    for name in [*files, *held_out]:
        test = held_out.get(name) or [row for row in public if row.source == name]
        rest = [row for row in public if row.source != name]
        told = [
            ruled(row.text[:READ_CHARACTERS].lower()) or said
            for row, said in zip(test, guesses(trained([*rest, *own]), test), strict=True)
        ]
        without = guesses(trained(rest), test)
        print(
            f"{name:20} rows {len(test):4}  accuracy {accuracy(told, test):.3f}  "
            f"without our prompts {accuracy(without, test):.3f}  length alone {by_length([*rest, *own], test):.3f}"
        )
        if name in held_out:
            print(table(told, test))
        else:
            all_told, tested = [*all_told, *told], [*tested, *test]
    print(f"{'all files':20} rows {len(tested):4}  accuracy {accuracy(all_told, tested):.3f}")
    print(table(all_told, tested))


def lines_of(model: Model) -> list[str]:
    """Features that change next to nothing are left out."""
    steps = np.rint(model.weights / step_back(model)).astype(int)
    middle = FIRST + (LAST - FIRST) // 2
    entries = [
        "".join(chr(middle + weight) for weight in steps[:, place]) + name
        for name, place in model.vocabulary.items()
        if np.abs(steps[:, place]).max() >= 2
    ]
    lines, line = [], entries[0]
    for entry in entries[1:]:
        if len(line) + len(entry) >= MAX_LINE:
            lines.append(line)
            line = entry
        else:
            line += BETWEEN + entry
    return [*lines, line]


def written(model: Model) -> str:
    """The module of weights."""
    lines = lines_of(model)
    count = sum(line.count(BETWEEN) + 1 for line in lines)
    body = "\n".join(f'    "{line}",' for line in lines)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    biases = ", ".join(f"{bias:g}" for bias in model.biases)
    return (
        '"""Written by scripts/train_classifier.py from public prompts (docs/classifier.md) and our own.\n\n'
        f"Data: {count} features. Each entry is nine characters, one per task in the order of TASKS, then the "
        "feature;\na character is its code - FIRST - half the span, in units of STEP. Do not edit: train again.\n"
        '"""\n\n# ruff: noqa: E501\n\nfrom __future__ import annotations\n\n'
        f'FIRST, LAST, BETWEEN = {FIRST}, {LAST}, "{BETWEEN}"\nSTEP = {step_back(model)}\nBIASES = ({biases})\n'
        f'SHA256 = "{digest}"  # of the lines, one under the other\nLINES = (\n{body}\n)\n'
    )


def step_back(model: Model) -> float:
    """The step the weights were rounded to."""
    sizes = np.abs(model.weights)
    return float(np.round(sizes[sizes > 0].min(), 4))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the public prompt files")
    what = parser.add_mutually_exclusive_group(required=True)
    for option in ("evaluate", "write", "check"):
        what.add_argument(f"--{option}", action="store_true")
    told = parser.parse_args()
    public = public_rows(told.data)
    own = [*own_rows(FOLDER / "seeds.txt", "own"), *own_rows(FOLDER / "phrases.txt", "phrase")]
    own += pattern_rows(FOLDER / "patterns.txt")
    if told.evaluate:
        evaluate(public, own, {name: own_rows(path, name) for name, path in HELD_OUT.items()})
        return 0
    text = written(trained([*public, *own]))
    if told.check:
        same = WEIGHTS.read_text(encoding="utf-8") == text
        print("the weights are those of the data" if same else "the weights in the tree are other ones")
        return 0 if same else 1
    WEIGHTS.write_text(text, encoding="utf-8")
    print(f"{WEIGHTS.relative_to(ROOT)}: {len(text.encode()) / 1000:.0f} kB, {len(text.splitlines())} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A box to try a prompt: which model would get it, and why. Nothing is sent to a model, nothing is kept of it."""

from __future__ import annotations

from dispatcher.api.page.markup import Markup, element
from dispatcher.api.page.seen import Seen
from dispatcher.api.page.words import cut
from dispatcher.vocabulary.request import TASKS

_PREFERENCES = ("balanced", "speed", "quality")


def try_box(seen: Seen) -> Markup:
    """The script leaves it alone once it is there: it holds what somebody is typing."""
    tasks = [element("option", "task: guess it", value=""), *(element("option", task, value=task) for task in TASKS)]
    prefers = [element("option", f"prefer: {word}", value=word) for word in _PREFERENCES]
    models = [element("option", "model: auto", value="auto")]
    models += [element("option", cut(name, 80), value=name) for name in list(seen.profiles.facts)[:200]]
    form = element(
        "form",
        element("label", "Prompt", for_="prompt", class_="heard"),
        element(
            "textarea",
            id="prompt",
            name="prompt",
            rows="3",
            maxlength="100000",
            placeholder="Summarise this report in three sentences …",
            autocomplete="off",
        ),
        element(
            "div",
            element("select", *tasks, name="task", aria_label="Task"),
            element("select", *prefers, name="prefer", aria_label="Preference"),
            element("select", *models, name="model", aria_label="Model"),
            class_="choices",
        ),
        element("button", "Show the choice", type="submit"),
        id="try-form",
        class_="scripted",
    )
    words = "Which model would get this prompt, right now, and why? Nothing is sent to a model, and nothing is kept."
    return element(
        "section",
        element("h2", "Try a prompt", id="try-title"),
        element("p", words, class_="quiet"),
        element("p", "Here this needs JavaScript; on a command line: dispatcher recommend", class_="quiet unscripted"),
        form,
        element("div", id="choice", role="region", aria_live="polite", aria_label="The choice"),
        id="try",
        data_key="try",
        data_keep=True,
        aria_labelledby="try-title",
        class_="card",
    )

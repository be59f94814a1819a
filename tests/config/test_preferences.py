"""Preferences, in the configuration and in a mapping as users of such tools keep it: read alike, checked alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dispatcher import config
from dispatcher.config.changes import different
from dispatcher.errors import ConfigurationInvalid
from dispatcher.vocabulary.preference_settings import (
    AgentPreference,
    GenerationOptions,
    ModelPreference,
    PreferenceSettings,
    TaskPreference,
)
from tests.misconfigured import problems_of

DEVELOPER = AgentPreference(
    model="qwen2.5:7b",
    capabilities=("code_generation",),
    options=GenerationOptions(temperature=0.2, num_predict=2048, stop=("END",)),
    switch_above_seconds=20.0,
)
OWN = """
preferences:
  switch_below_success_ratio: 0.8
  tasks: {coding: {model: qwen2.5:7b}, planning: {model: llama3.2:3b}}
  agents:
    developer:
      model: qwen2.5:7b
      capabilities: [code_generation]
      switch_above: 20s
      options: {temperature: 0.2, num_predict: 2048, stop: [END]}
    writer: {model: llama3.2:3b}
  models:
    phi3:mini: {strengths: [accuracy], options: {num_predict: 512}}
    qwen2.5:7b: {capabilities: {reasoning: 0.9}}
"""
KEPT = {
    "task_to_model": {"coding": "qwen2.5:7b"},
    "task_preferences": {"planning": {"model": "llama3.2:3b"}},
    "agents": {
        "developer": {
            "model": "qwen2.5:7b",
            "temperature": 0.2,
            "max_tokens": 2048,
            "stop": "END",
            "capabilities": ["code_generation"],
            "switch_above_seconds": 20,
        }
    },
    "agent_to_model": {"writer": "llama3.2:3b"},
    "models": {
        "phi3:mini": {"capabilities": ["accuracy"], "max_tokens": 512},
        "qwen2.5:7b": {"capabilities": {"reasoning": 0.9}},
    },
    "switch_below_success": 0.8,
}


def mapped(folder: Path, text: str, *, name: str = "team.yaml", more: str = "") -> PreferenceSettings:
    (folder / name).write_text(text)
    (folder / "dispatcher.yaml").write_text(f"preferences: {{file: {name}{more}}}\n")
    return config.load(folder / "dispatcher.yaml", {}).preferences


def refused(folder: Path, text: str, more: str = "") -> list[str]:
    with pytest.raises(ConfigurationInvalid) as caught:
        mapped(folder, text, more=more)
    return caught.value.problems


def test_preferences_of_the_configuration_are_read_in_its_own_units():
    settings = config.parse(OWN, {})
    by_name = {model.name: model.capabilities for model in settings.models}

    assert (
        PreferenceSettings(
            switch_below_success_ratio=0.8,
            tasks={"coding": TaskPreference(model="qwen2.5:7b"), "planning": TaskPreference(model="llama3.2:3b")},
            agents={"developer": DEVELOPER, "writer": AgentPreference(model="llama3.2:3b")},
            models={
                "phi3:mini": ModelPreference(strengths=("accuracy",), options=GenerationOptions(num_predict=512)),
                "qwen2.5:7b": ModelPreference(capabilities={"reasoning": 0.9}),
            },
        )
        == settings.preferences
    )
    assert (0.8, 0.9, 0.85) == (
        by_name["phi3:mini"]["accuracy"],
        by_name["qwen2.5:7b"]["reasoning"],
        by_name["qwen2.5:7b"]["code_generation"],
    )


@pytest.mark.parametrize("indent", [None, 2, "\t"], ids=["one line", "indented", "with tabs"])
def test_a_mapping_in_the_forms_that_people_keep_says_the_same(tmp_path, indent):
    own, found = config.parse(OWN, {}), mapped(tmp_path, json.dumps(KEPT, indent=indent), name="team.json")

    assert ["preferences.file"] == list(different(own.preferences, found, "preferences"))
    whole = config.load(tmp_path / "dispatcher.yaml", {})
    assert own.models == whole.models


def test_a_string_without_end_is_read_once_and_not_once_for_each_quote_in_it(tmp_path):
    """By the square of its length, this takes longer than the whole suite may."""
    with pytest.raises(ConfigurationInvalid, match="this is not YAML"):
        mapped(tmp_path, '{"' + '\\"' * 400_000, name="team.json")


def test_a_mapping_and_the_configuration_together_say_what_both_say(tmp_path):
    found = mapped(tmp_path, "agents: {dev: {model: phi3:mini}}", more=", agents: {dev: {options: {seed: 7}}, you: {}}")

    expected = {"dev": AgentPreference(model="phi3:mini", options=GenerationOptions(seed=7)), "you": AgentPreference()}
    assert expected == found.agents


@pytest.mark.parametrize("text", ["", "# nothing yet", "{}", "agents:"])
def test_a_mapping_without_anything_prefers_nothing(tmp_path, text):
    assert PreferenceSettings(file="team.yaml") == mapped(tmp_path, text)


def test_the_mapping_can_be_named_by_a_variable(tmp_path):
    (tmp_path / "team.yaml").write_text("task_to_model: {coding: phi3:mini}")
    (tmp_path / "dispatcher.yaml").write_text("")

    settings = config.load(tmp_path / "dispatcher.yaml", {"DISPATCHER_PREFERENCES_FILE": str(tmp_path / "team.yaml")})

    assert {"coding": TaskPreference(model="phi3:mini")} == settings.preferences.tasks


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("preferences: {agents: {a: {model: qwen}}}", "preferences.agents.a.model (line 1): 'qwen' is not a model of"),
        ("preferences: {tasks: {code: {}}}", "preferences.tasks.code (line 1): 'code' is none of coding, architecture"),
        ("preferences: {tasks: {coding: phi}}", "preferences.tasks.coding (line 1): expected settings below it"),
        (
            "preferences: {agents: {a: {options: {num_ctx: 4096}}}}",
            "preferences.agents.a.options.num_ctx (line 1): no such setting",
        ),
        (
            "preferences: {agents: {a.b: {options: {temperature: .nan}}}}",
            "preferences.agents.a.b.options.temperature (line 1): .nan is not a finite number",
        ),
        (
            "preferences: {models: {phi3:mini: {capabilities: {speed: 2}}}}",
            "preferences.models.phi3:mini.capabilities.speed (line 1): 2.0 is out of range; at most 1",
        ),
        (
            "preferences: {agents: {a: {capabilities: [speed, speed]}}}",
            "preferences.agents.a.capabilities (line 1): speed is named twice; name it once",
        ),
        ("preferences: {agents: {'': {}}}", "preferences.agents. (line 1): '' cannot name an agent"),
        ("preferences: {switch_above: 0}", "preferences.switch_above (line 1): 0s is out of range; at least 1ms"),
        ("preferences: {file: none.yaml}", "preferences.file (line 1): none.yaml: cannot be read (No such file"),
        ("preferences: {file: /}", "preferences.file (line 1): /: a directory, not a file"),
    ],
)
def test_a_problem_of_a_preference_names_path_line_and_what_to_do(text, begins):
    assert [begins] == [problem[: len(begins)] for problem in problems_of(text)]


BAD = """\
task_to_model:
  codin: qwen2.5:7b
  coding: qwen
  analysis: [a, b]
  coding: phi3:mini
task_preferences:
  coding: {model: llama3.2:3b}
agents:
  dev: &x {model: qwen2.5:7b, temperature: .nan, max_token: 3, num_ctx: 9, prefer: fast, capabilities: [coding]}
  two: *x
  three: {max_tokens: 3, num_predict: 4, task: code, temperature: 9, stop: [""]}
agent_to_model: {dev: phi3:mini}
models: {gpt4: {temperature: 0.2}, phi3:mini: {capabilities: {speed: 2}}}
fallbak: yes
"""


def test_every_problem_of_a_mapping_is_told_at_once_with_its_own_line(tmp_path):
    expected = [
        "team.yaml: task_to_model.coding (line 5): given twice, first on line 3; keep one of them",
        "team.yaml: agents.dev (line 9): the anchor &x is not allowed; remove it",
        "team.yaml: agents.two (line 10): the alias *x is not allowed; write the value out",
        "task_to_model.analysis (team.yaml, line 4): expected one model, or settings below it",
        "tasks.coding.model (team.yaml, line 7): given twice, first on team.yaml, line 3",
        "agents.dev.max_token (team.yaml, line 9): no such setting; did you mean 'max_tokens'?",
        "agents.dev.num_ctx (team.yaml, line 9): this is how a model is loaded, which follows from the requests",
        "agents.two (team.yaml, line 10): expected settings below it",
        "agents.three.num_predict (team.yaml, line 11): given twice, or by another word for it",
        "agents.dev.model (team.yaml, line 12): given twice, first on team.yaml, line 9",
        "fallbak (team.yaml, line 14): no such part of a mapping; known: agent_preferences, agent_to_model, agents",
        "preferences.tasks.planning.model (team.yaml, line 15): given twice, first on line 1",
        "preferences.tasks.codin (team.yaml, line 2): 'codin' is none of",
        "preferences.tasks.coding.model (team.yaml, line 3): 'qwen' is not a model of the chain",
        "preferences.agents.dev.prefer (team.yaml, line 9): 'fast' is none of speed, balanced, quality",
        "preferences.agents.dev.options.temperature (team.yaml, line 9): .nan is not a finite number",
        "preferences.agents.dev.capabilities[0] (team.yaml, line 9): 'coding' is none of code_generation",
        "preferences.agents.three.task (team.yaml, line 11): 'code' is none of",
        "preferences.agents.three.options.temperature (team.yaml, line 11): 9.0 is out of range; at most 2",
        "preferences.agents.three.options.stop (team.yaml, line 11): an empty text ends every answer",
        "preferences.models.gpt4 (team.yaml, line 13): 'gpt4' is not a model of the chain",
        "preferences.models.phi3:mini.capabilities.speed (team.yaml, line 13): 2.0 is out of range; at most 1",
    ]
    text = f"{BAD}tasks: {{planning: {{model: phi3:mini}}}}\n"
    problems = refused(tmp_path, text, more=", tasks: {planning: {model: llama3.2:3b}}")

    missing = [words for words in expected if not any(problem.startswith(words) for problem in problems)]
    assert ([], len(expected)) == (missing, len(problems)), "\n".join(problems)


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("- coding", "team.yaml (team.yaml, line 1): expected a mapping with tasks, task_to_model"),
        ("agents: [a]", "agents (team.yaml, line 1): expected names with a model, or with settings, below it"),
        ("agents: {a: {model: [x]}}", "preferences.agents.a.model (team.yaml, line 1): expected one value"),
        ("agents: {a: {options: 5}}", "agents.a.options (team.yaml, line 1): "),
        ("models: {phi3:mini: big}", "models.phi3:mini (team.yaml, line 1): expected settings below it"),
        ("agents: {a", "team.yaml (line 1): this is not YAML"),
        (
            '{"agents": {"a": {"temperature": NaN}}}',
            "preferences.agents.a.options.temperature (team.yaml, line 1): NaN",
        ),
        ('{"agents": {"a": {"temperature": true}}}', "preferences.agents.a.options.temperature (team.yaml, line 1): "),
    ],
)
def test_a_mapping_of_another_shape_is_refused_in_words(tmp_path, text, begins):
    assert [begins] == [problem[: len(begins)] for problem in refused(tmp_path, text)]


def test_a_reload_reads_the_mapping_again_and_a_bad_one_changes_nothing(tmp_path):
    mapped(tmp_path, "agents: {dev: {model: phi3:mini}}")
    path = tmp_path / "dispatcher.yaml"
    before = config.load(path, {})

    (tmp_path / "team.yaml").write_text(
        "agents: {dev: {model: qwen2.5:7b}}\nmodels: {phi3:mini: {capabilities: [speed]}}"
    )
    found = config.reread(path, {}, before)
    assert ("preferences.agents.dev", "preferences.models.phi3:mini") == found.changed
    assert AgentPreference(model="qwen2.5:7b") == found.settings.preferences.agents["dev"]

    (tmp_path / "team.yaml").write_text("agents: {dev: {model: nope}}")
    with pytest.raises(ConfigurationInvalid) as caught:
        config.reread(path, {}, found.settings)
    assert not caught.value.unread
    (tmp_path / "team.yaml").unlink()
    with pytest.raises(ConfigurationInvalid) as caught:
        config.reread(path, {}, found.settings)
    assert caught.value.unread, "it is tried again: what it says is not known"

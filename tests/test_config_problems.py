"""Every class of problem a configuration can have: its path, its line, what to do; and all of them at once."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import config
from dispatcher.errors import ConfigurationInvalid
from tests.misconfigured import problems_of

FORM = [
    ("a: &x 1", "a (line 1): the anchor &x is not allowed; remove it"),
    ("server:\n  host: *x", "server.host (line 2): the alias *x is not allowed; write the value out"),
    ("<<: {a: 1}", "<< (line 1): no such setting"),
    (
        "server:\n  host: !!python/object/apply:os.system [id]",
        "server.host (line 2): the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed",
    ),
    ("server: {}\n\nserver: {}", "server (line 3): given twice, first on line 1; keep one of them"),
    ("server:\n  port: 1\n  port: 2", "server.port (line 3): given twice, first on line 2; keep one of them"),
    ("server: [1", "dispatcher.yaml (line 1): this is not YAML (while parsing a flow sequence"),
    ("server:\n\tport: 1", "dispatcher.yaml (line 2): this is not YAML (while scanning for the next token"),
    ("server:\n  port: \x07", "dispatcher.yaml (line 2): the character #x0007 is not allowed; remove it"),
    ("[" * 50, "dispatcher.yaml (line 1): nested more than 32 deep"),
    ("a: {}\n---\nb: {}", "dispatcher.yaml (line 2): a second document begins here"),
    ("- server", "dispatcher.yaml (line 1): expected sections like `server:`, got something else"),
    ("server", "dispatcher.yaml (line 1): expected sections like `server:`, got something else"),
    ("? [a]\n: 1", "dispatcher.yaml (line 1): a key must be plain text"),
    ("# " + "x" * 1_048_576, "dispatcher.yaml: 1048578 characters; a configuration has at most 1048576"),
]

VALUES = [
    ("server: {prot: 1}", "server.prot (line 1): no such setting; did you mean 'port'?"),
    ("lifecycle: {idle_seconds: 1}", "lifecycle.idle_seconds (line 1): no such setting; did you mean 'idle'?"),
    ("port: 1", "port (line 1): no such setting; it belongs elsewhere: server.port or exporter.port"),
    (
        "zzz: 1",
        "zzz (line 1): no such setting; known: experiments, exporter, gateway, history, lifecycle, models, policy,",
    ),
    ("server: 5", "server (line 1): expected settings below it, each `key: value`"),
    ("server: {port: [1]}", "server.port (line 1): expected one value (integer)"),
    ("server: {port:}", "server.port (line 1): no value; give one, or leave the key out"),
    ("server: {port: 1.5}", "server.port (line 1): '1.5' is not a whole number; write it in digits"),
    ("server: {port: 010}", "server.port (line 1): '010' is not a whole number; write it in digits, without leading"),
    ("server: {port: 0}", "server.port (line 1): 0 is out of range; at least 1"),
    ("server: {port: 65536}", "server.port (line 1): 65536 is out of range; at most 65535"),
    ("exporter: {port: 70000}", "exporter.port (line 1): 70000 is out of range; at most 65535"),
    ("exporter: {enabled: maybe}", "exporter.enabled (line 1): 'maybe' is neither true nor false"),
    ("telemetry: {interval: 5 sec}", "telemetry.interval (line 1): '5 sec' is not a duration; write it like 5s, 1m30s"),
    ("telemetry: {interval: 1:30}", "telemetry.interval (line 1): '1:30' is not a duration"),
    ("telemetry: {interval: -5s}", "telemetry.interval (line 1): '-5s' is not a duration"),
    ("telemetry: {interval: 0}", "telemetry.interval (line 1): 0s is out of range; at least 1ms"),
    ("telemetry: {interval: .inf}", "telemetry.interval (line 1): .inf is not a finite number"),
    ("policy: {margin_ratio: .nan}", "policy.margin_ratio (line 1): .nan is not a finite number"),
    ("policy: {margin_ratio: 1e999}", "policy.margin_ratio (line 1): 1e999 is not a finite number"),
    ("policy: {margin_ratio: 1.5}", "policy.margin_ratio (line 1): 1.5 is out of range; at most 1"),
    ("policy: {margin_ratio: -0.1}", "policy.margin_ratio (line 1): -0.1 is out of range; at least 0"),
    ("policy: {cpu_enter_ratio: 85%}", "policy.cpu_enter_ratio (line 1): '85%' is a percentage; write the ratio, 0.85"),
    ("policy: {cpu_enter_ratio: high}", "policy.cpu_enter_ratio (line 1): 'high' is not a number; write it like 0.85"),
    ("policy: {memory_enter_ratio: 0.9}", "policy.memory_enter_ratio (line 1): 0.9 is out of range; at least 1"),
    ("policy: {weights_simple: [1, 0]}", "policy.weights_simple (line 1): expected 3 numbers, like [0.2, 0.6, 0.2]"),
    ("policy: {weights_simple: [2, 0, 0]}", "policy.weights_simple[0] (line 1): 2.0 is out of range; at most 1"),
    ("lifecycle: {reserve: 3G}", "lifecycle.reserve (line 1): '3G' is not a size; write 3GiB (powers of 1024) or 3GB"),
    ("lifecycle: {reserve: 3 apples}", "lifecycle.reserve (line 1): '3 apples' is not a size; write it like 3GiB"),
    ("lifecycle: {reserve: 3}", "lifecycle.reserve (line 1): 3 bytes? write 3GiB"),
    ("lifecycle: {capacity: 512}", "lifecycle.capacity (line 1): 512 bytes? write 512MiB"),
    ("lifecycle: {reserve: 1.5}", "lifecycle.reserve (line 1): '1.5' is no whole number of bytes; add a unit"),
    ("lifecycle: {provider: dokcer}", "lifecycle.provider (line 1): 'dokcer' is none of auto, docker, ollama, none,"),
    ("telemetry: {preset: owm}", "telemetry.preset (line 1): 'owm' is none of own, frcooper; did you mean 'own'?"),
    ("server: {allowed_hosts: localhost}", "server.allowed_hosts (line 1): expected a list, like [localhost,"),
    ("telemetry: {prometheus: {headers: [a]}}", "telemetry.prometheus.headers (line 1): expected names with values"),
    ("history: {commit_interval: 1s}", "history.commit_interval (line 1): 1s is out of range; at most 100ms"),
    ("rehearsal: {seed: " + "9" * 50 + "}", f"rehearsal.seed (line 1): {'9' * 40}… is too long for a number"),
]

MODELS = [
    ("models: phi3:mini", "models (line 1): expected a list of models, each `- name: phi3:mini`"),
    ("models: []", "models (line 1): empty: there would be nothing to choose; leave it out for phi3:mini,"),
    ("models: [phi3:mini, phi3:mini]", "models[1].name (line 1): phi3:mini is models[0] already; name a model once"),
    ("models: [{context: 4096}]", "models[0].name (line 1): a model needs a name, as `ollama list` writes it"),
    ("models: [phi3]", "models[0] (line 1): phi3 is not shipped (phi3:mini, llama3.2:3b, qwen2.5:7b); did you mean"),
    (
        "models:\n- name: gemma2:2b\n  file: 1.6GiB\n  footprint: 3GiB",
        "models[0] (line 2): gemma2:2b is not shipped (phi3:mini, llama3.2:3b, qwen2.5:7b); give context (",
    ),
    (
        "models:\n- name: mistral:7b",
        "models[0] (line 2): mistral:7b is not shipped (phi3:mini, llama3.2:3b, qwen2.5:7b); give file, context, "
        "footprint (`ollama list` has the size, `ollama show mistral:7b` the context; footprint is what it occupies, "
        "as `ollama ps` says, or give kv_bytes_per_token instead), like: {name: mistral:7b, file: 4.1GiB, context: "
        "32768, footprint: 5.5GiB}",
    ),
    (
        "models:\n- name: auto\n  file: 1GiB\n  context: 4096\n  footprint: 3GiB",
        "models[0].name (line 2): 'auto' cannot name a model",
    ),
    (
        "models:\n- name: phi3:mini\n  features: [json, tool]",
        "models[0].features[1] (line 3): 'tool' is none of tools, json, vision; did you mean 'tools'?",
    ),
    (
        "models: [{name: phi3:mini, capabilities: {speeed: 1}}]",
        "models[0].capabilities.speeed (line 1): 'speeed' is none of code_generation,",
    ),
    (
        "models: [{name: phi3:mini, capabilities: {speed: 2}}]",
        "models[0].capabilities.speed (line 1): 2.0 is out of range; at most 1",
    ),
    ("models: [{name: phi3:mini, contxt: 1}]", "models[0].contxt (line 1): no such setting; did you mean 'context'?"),
]

SIGNAL_OVERRIDES = [
    (
        "telemetry: {signals: {host_cpu_bussy_ratio: {expr: a}}}",
        "telemetry.signals.host_cpu_bussy_ratio (line 1): 'host_cpu_bussy_ratio' is none of the known names; did you",
    ),
    ("telemetry: {signals: {host_cpu_count:}}", "telemetry.signals.host_cpu_count (line 1): expected `expr` and `age_"),
    (
        "telemetry: {signals: {host_cpu_count: {exp: a}}}",
        "telemetry.signals.host_cpu_count.exp (line 1): no such setting; did you mean 'expr'?",
    ),
    (
        'telemetry: {signals: {host_cpu_count: {age_of: ""}}}',
        "telemetry.signals.host_cpu_count.age_of (line 1): empty; write a selector",
    ),
]

GATEWAY = [
    ("gateway: {queue: {batch_share: 0}}", "gateway.queue.batch_share (line 1): 0.0 is out of range; at least 0.01"),
    ("gateway: {retries: {attempts: 0}}", "gateway.retries.attempts (line 1): 0 is out of range; at least 1"),
    (
        "gateway: {timeouts: {first_token_min: 10m}}",
        "gateway.timeouts.first_token_min (line 1): gateway.timeouts.first_token_min is 10m and",
    ),
    (
        "gateway: {embedding_model: gpt-4}",
        "gateway.embedding_model (line 1): 'gpt-4' is not a model of the chain; one of",
    ),
    ("gateway: {last_resort: {model: big}}", "gateway.last_resort.url: not set, so nothing leaves this machine;"),
    (
        "gateway: {last_resort: {url: 'ftp://a/v1', model: big}}",
        "gateway.last_resort.url (line 1): 'ftp://a/v1' has no scheme this can use (http, https)",
    ),
    ("gateway: {last_resort: {url: 'https://a/v1'}}", "gateway.last_resort.model: not set; name the model"),
    (
        "gateway: {last_resort: {url: 'https://a/v1', model: big, key_env: NOT_THERE}}",
        "gateway.last_resort.key_env (line 1): the environment variable NOT_THERE is",
    ),
]

DISAGREEMENTS = [
    (
        "telemetry: {interval: 1s}",
        "telemetry.interval (line 1): telemetry.prometheus.timeout is 2s and telemetry.interval is 1s; the first must "
        "be at most the second: a poll ends before the next begins",
    ),
    (
        "policy: {blind_after: 5s}",
        "policy.blind_after (line 1): telemetry.interval is 5s and policy.blind_after is 5s;",
    ),
    ("policy: {memory_leave_ratio: 1.1}", "policy.memory_leave_ratio (line 1): policy.memory_enter_ratio is 1.1 and"),
    (
        "policy: {cpu_leave_ratio: 0.9}",
        "policy.cpu_leave_ratio (line 1): policy.cpu_leave_ratio is 0.9 and policy.cpu_",
    ),
    (
        "policy: {degrade_samples: 5}",
        "policy.degrade_samples (line 1): policy.degrade_samples is 5 and policy.degrade_",
    ),
    ("lifecycle: {reserve: 2GiB, capacity: 2GiB}", "lifecycle.reserve (line 1): lifecycle.reserve is 2GiB and lifecyc"),
    ("lifecycle: {idle_min: 5h}", "lifecycle.idle_min (line 1): lifecycle.idle_min is 5h and lifecycle.idle_max is 4h"),
    ("lifecycle: {stop_grace: 35s}", "lifecycle.stop_grace (line 1): lifecycle.stop_grace is 35s and lifecycle.stop_t"),
    ("lifecycle: {backoff_max: 500ms}", "lifecycle.backoff_max (line 1): lifecycle.backoff_min is 1s and lifecycle.ba"),
    ("lifecycle: {quarantine: 2h}", "lifecycle.quarantine (line 1): lifecycle.quarantine is 2h and lifecycle.quaranti"),
    ("lifecycle: {lease_max: 30s}", "lifecycle.lease_max (line 1): lifecycle.lease_min is 1m and lifecycle.lease_max "),
    ("rehearsal: {host_memory: 4GiB}", "rehearsal.host_memory (line 1): rehearsal.host_other is 4GiB and rehearsal.ho"),
    ("policy: {weights_complex: [0.5, 0.5, 0.5]}", "policy.weights_complex (line 1): [0.5, 0.5, 0.5] sum to 1.5; capa"),
    ("server: {port: 9435}", "server.port (line 1): 9435 is the port of the API too; choose another, or exporter.enab"),
    ("server: {allowed_hosts: []}", "server.allowed_hosts (line 1): empty: every request would be answered 421"),
    (
        "server: {host: 0.0.0.0}",
        "server.host (line 1): 0.0.0.0 can be reached from other machines and no key is configured; set "
        "server.key_env: DISPATCHER_KEY and export DISPATCHER_KEY=<a long random text>, or use 127.0.0.1",
    ),
    (
        "exporter: {host: my-machine}",
        "exporter.host (line 1): my-machine can be reached from other machines and no key",
    ),
    (
        "server: {key_env: MY_KEY}",
        "server.key_env (line 1): the environment variable MY_KEY is not set; export MY_KEY=…",
    ),
    ("server: {key_env: s3cret!}", "server.key_env (line 1): this is not the name of an environment variable"),
    ("telemetry: {prometheus: {url: localhost:9090}}", "telemetry.prometheus.url (line 1): 'localhost:9090' has no sc"),
    (
        "telemetry: {prometheus: {url: 9090}}",
        "telemetry.prometheus.url (line 1): '9090' has no scheme this can use (http, https); write it like "
        "http://127.0.0.1:9090",
    ),
    ("telemetry: {prometheus: {url: 'http://'}}", "telemetry.prometheus.url (line 1): 'http://' names no host"),
    ("telemetry: {prometheus: {url: 'http://a:b'}}", "telemetry.prometheus.url (line 1): 'http://a:b' is not a URL (P"),
    ("telemetry: {prometheus: {url: 'http://a:0'}}", "telemetry.prometheus.url (line 1): 'http://a:0' has port 0"),
    ("lifecycle: {ollama_url: 'ftp://a'}", "lifecycle.ollama_url (line 1): 'ftp://a' has no scheme this can use"),
    ("lifecycle: {docker_url: 'docker://a'}", "lifecycle.docker_url (line 1): 'docker://a' has no scheme this can use"),
    (
        "lifecycle: {ollama_url: 'http://me:pw@a'}",
        "lifecycle.ollama_url (line 1): a URL is logged, so it must not carr",
    ),
    (
        "telemetry: {prometheus: {headers: {authorization: Bearer x}}}",
        "telemetry.prometheus.headers (line 1): authorization is a secret; put it into the environment",
    ),
    (
        'telemetry: {prometheus: {headers: {X-A: "a\\nb"}}}',
        "telemetry.prometheus.headers (line 1): 'X-A' is not a header that can be sent",
    ),
    (
        "telemetry: {prometheus: {headers_env: {Authorization: NOT_THERE}}}",
        "telemetry.prometheus.headers_env (line 1): Authorization: the environment variable NOT_THERE is not set",
    ),
    (
        "telemetry: {prometheus: {tls_ca_file: /nowhere/ca.pem}}",
        "telemetry.prometheus.tls_ca_file (line 1): there is no file /nowhere/ca.pem; give the path of a PEM file",
    ),
]


@pytest.mark.parametrize(("text", "begins"), FORM + VALUES + MODELS + SIGNAL_OVERRIDES + GATEWAY + DISAGREEMENTS)
def test_a_problem_names_path_line_and_what_to_do(text, begins):
    problems = problems_of(text)

    assert begins in [problem[: len(begins)] for problem in problems]


@pytest.mark.parametrize(("text", "begins"), VALUES + MODELS + SIGNAL_OVERRIDES + GATEWAY + DISAGREEMENTS)
def test_one_mistake_is_one_problem_and_says_the_next_step(text, begins):
    (problem,) = problems_of(text)

    assert re.search(r"; |: | too long for a number", problem)


def test_a_secret_put_where_its_name_belongs_is_not_repeated():
    assert "s3cret!" not in "".join(problems_of("server: {key_env: s3cret!}"))
    assert "pw" not in "".join(problems_of("lifecycle: {ollama_url: 'http://me:pw@a'}"))


def test_all_problems_come_at_once_in_the_order_of_their_lines():
    problems = problems_of(
        "telemetry: {interval: never}\nserver:\n  port: 0\n  prot: 1\nlifecycle: {stop_grace: 1h}\n",
        {"DISPATCHER_HISTORY_RETENTION": "much", "DISPATCHER_NONSENSE": "1"},
    )

    expected = [
        "telemetry.interval (line 1)",
        "server.port (line 3)",
        "server.prot (line 4)",
        "lifecycle.stop_grace (line 5)",
        "history.retention (DISPATCHER_HISTORY_RETENTION)",
        "DISPATCHER_NONSENSE",
    ]
    assert expected == [problem.split(": ")[0] for problem in problems]


def test_a_refused_value_makes_no_second_problem_with_what_it_must_agree_with():
    (problem,) = problems_of("telemetry: {interval: soon, prometheus: {timeout: 9s}}")

    assert problem.startswith("telemetry.interval")


@given(st.text(max_size=200))
def test_no_text_whatever_raises_anything_but_its_problems(text):
    with contextlib.suppress(ConfigurationInvalid):
        config.parse(text, {})

"""The laboratory itself: the same moves give the same history, and what it finds wrong is wrong."""

from __future__ import annotations

import random

from dispatcher.vocabulary.request import Asked
from tests.builders import LLAMA, QWEN
from tests.faultlab.engine import PLACES
from tests.faultlab.moves import Moves
from tests.faultlab.rules import CALM_SECONDS


def story(seed: int) -> list[str]:
    random.seed(seed)  # of lease ids
    lab, chance = Moves(9.0, seed), random.Random(seed)
    for _ in range(40):
        lab.ask(Asked(text="x", model=chance.choice(("auto", "qwen2.5:7b", "llama3.2:3b"))))
        place = chance.choice(PLACES)
        chance.choice((lab.start_fails, lab.stop_hangs, lab.place_heals, lab.killed_for_memory, lab.vanishes))(place)
        lab.advance(chance.uniform(0.0, 10.0))
        lab.check()
    lab.crash()
    lab.converge()
    lab.close()
    return lab.story


def test_the_same_seed_gives_the_same_history_to_the_millisecond():
    assert story(1) == story(1)
    assert story(1) != story(2)


def test_a_model_refused_for_memory_once_is_served_again_on_a_host_that_just_holds_it():
    lab = Moves(7.0)  # room for 6 GiB: more than qwen's need × 1.10, less than × 1.25
    lab.others_start(LLAMA, 4096)
    lab.ask(Asked(text="x", model="llama3.2:3b", lease_seconds=60.0))
    lab.advance(20.0)
    assert "memory_short:docker:qwen/qwen2.5:7b" in lab.process.sampler.snapshot().latches
    lab.advance(CALM_SECONDS)

    lab.is_served("qwen2.5:7b")

    assert lab.engine.servers[QWEN].num_ctx
    lab.close()


def test_a_container_that_vanishes_while_it_starts_is_no_fault_of_ours():
    lab = Moves(9.0)
    lab.ask(Asked(text="x", model="llama3.2:3b"))
    lab.settle()
    lab.engine.servers[LLAMA].start_seconds = 6.0
    lab.advance(0.1)
    lab.vanishes(LLAMA)
    lab.advance(10.0)

    lab.check()
    lab.converge()
    lab.close()

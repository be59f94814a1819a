"""Asks the dispatcher that scripts/run has started: .venv/bin/python docs/examples/ask.py ["a prompt"]

A daemon that wants a key finds it in DISPATCHER_API_KEY; DISPATCHER_URL says where it is, if not on this machine.
"""

from __future__ import annotations

import argparse
import os
import sys

from dispatcher.client import ClientError, Dispatcher, NoModel

URL = os.environ.get("DISPATCHER_URL", "http://127.0.0.1:11435")
PROMPT = "Summarise in one sentence: the meeting is moved to Monday, because the room is taken on Friday."


def main() -> int:
    parser = argparse.ArgumentParser(description="Ranks the models for a prompt, then streams the best one's answer.")
    parser.add_argument("prompt", nargs="?", default=PROMPT, help="what to ask (default: %(default)s)")
    prompt: str = parser.parse_args().prompt
    try:
        with Dispatcher(URL, os.environ.get("DISPATCHER_API_KEY")) as dispatcher:
            ask(dispatcher, prompt)
    except NoModel as refusal:
        print(f"{refusal} (again in {refusal.retry_after_seconds} s)", file=sys.stderr)
        return 1
    except ClientError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def ask(dispatcher: Dispatcher, prompt: str) -> None:
    for one in dispatcher.recommend(prompt).ranked:
        print(f"{one.rank}. {one.model}: {one.because}")

    with dispatcher.stream(prompt, agent="ask.py") as texts:
        for text in texts:
            print(text, end="", flush=True)
    answer = texts.generated
    assert answer is not None  # the stream came to its end
    print(f"\n— {answer.model}, {answer.output_tokens} tokens in {answer.duration_seconds:.1f} s")

    choice = dispatcher.select(prompt=prompt, prefer="speed")
    print(f"for speed: {choice.reason}")
    if choice.lease_id is not None:
        dispatcher.give_back(choice.lease_id)  # it was not called


if __name__ == "__main__":
    sys.exit(main())

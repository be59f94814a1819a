"""The last bound: a process in which something hangs ends all the same, and says what it was."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from dispatcher.daemon.leaving import EX_FORCED

ROOT = Path(__file__).parents[2]


def test_what_hangs_is_named_and_left_behind():
    script = """
        import logging, sys, threading
        from concurrent.futures import ThreadPoolExecutor
        from dispatcher.daemon.leaving import LastBound
        logging.basicConfig(stream=sys.stderr)
        ThreadPoolExecutor(thread_name_prefix="resolver").submit(threading.Event().wait)  # joined at exit
        bound = LastBound()
        bound.within(60)
        bound.within(0.2)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert EX_FORCED == ended.returncode, ended.stderr
    assert "leaving=forced" in ended.stderr
    assert "resolver_0" in ended.stderr

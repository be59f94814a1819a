#!/usr/bin/env python3
"""`dispatcher configure` as a script with the same options; --help lists them.

On a fresh machine it makes .venv first, as scripts/run does. Runs under any Python: it only hands over.
"""

import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENSURE = 'root=$1; . "$root/scripts/_venv.sh"; ensure_venv requirements.lock'


def main():
    """Never returns: the command takes this process's place, and so its signals and its exit code."""
    made = subprocess.call(["bash", "-euc", ENSURE, "bash", ROOT])
    if made != 0:
        sys.exit(made)
    program = os.path.join(ROOT, ".venv", "bin", "dispatcher")
    os.execv(program, [program, "configure", *sys.argv[1:]])


if __name__ == "__main__":
    main()

"""A workload beside the models that takes real memory and gives it back: one line in, how many bytes to hold; one line
out, how many are held."""

from __future__ import annotations

import sys

PIECE_BYTES = 64 * 1024**2  # above any threshold of malloc: what is freed goes back to the system at once


def main() -> None:
    held: list[bytearray] = []
    for line in sys.stdin:
        wanted = max(0, round(int(line) / PIECE_BYTES))
        del held[wanted:]
        while len(held) < wanted:
            held.append(bytearray(b"\1") * PIECE_BYTES)  # written to, every page of it
        print(len(held) * PIECE_BYTES, flush=True)


if __name__ == "__main__":
    main()

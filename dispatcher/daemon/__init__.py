"""The composition root: Settings → rooms → named tasks. The only place that names every room.

main ─> composition.Daemon ─┬─ operations   what the API may ask that is more than one room's (Doors)
                            ├─ eyes         the provider, and the sources the sampler asks
                            ├─ stream       the one emit
                            ├─ found        what start-up says it found
                            ├─ pulse        the loop's heartbeat and lag
                            ├─ servers      uvicorn on sockets of ours; draining
                            └─ slow_jobs    APScheduler: the health summary, learning footprints
"""

from dispatcher.daemon.composition import main

__all__ = ["main"]

"""The composition root: Settings → rooms → named tasks. The only place that names every room.

process.main ─> composition.Daemon ─> wiring.Rooms ─┬─ operations   what the API may ask that is more than one room's
                                                    ├─ eyes         the provider, and the sources the sampler asks
                                                    ├─ fleet        the controller, as the desk knows it
                                                    ├─ stream       the one emit
                                                    ├─ found        what start-up says it found
                                                    ├─ pulse        the loop's heartbeat and lag
                                                    ├─ reload       the configuration again
                                                    ├─ servers      uvicorn on sockets of ours; draining
                                                    └─ slow_jobs    APScheduler: the health summary, footprints
"""

from dispatcher.daemon.process import main

__all__ = ["main"]

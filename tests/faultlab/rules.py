"""The settings of the laboratory, and how long what they allow may last."""

from __future__ import annotations

from dispatcher.vocabulary.settings import LifecycleSettings, PolicySettings

LIFECYCLE = LifecycleSettings(  # short times, so that a schedule comes to an end of each of them
    provider="docker",
    idle_seconds=45.0,
    dwell_seconds=10.0,
    start_timeout_seconds=8.0,
    load_timeout_seconds=30.0,
    stop_timeout_seconds=15.0,
    backoff_max_seconds=16.0,
    restart_window_seconds=120.0,
    quarantine_seconds=40.0,
    quarantine_max_seconds=80.0,
    lease_min_seconds=20.0,
    lease_max_seconds=90.0,
)
POLICY = PolicySettings(recover_after_seconds=30.0, blind_after_seconds=60.0)
STUCK_RETRY_SECONDS = 60.0
CALM_SECONDS = (  # what may still run when the last fault is healed, and a minute
    LIFECYCLE.backoff_max_seconds
    + LIFECYCLE.quarantine_max_seconds
    + POLICY.recover_after_seconds
    + LIFECYCLE.lease_max_seconds
    + STUCK_RETRY_SECONDS
    + LIFECYCLE.stop_timeout_seconds
    + 60.0
)

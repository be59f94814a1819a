"""YAML and environment → Settings, checked whole before anything starts; every problem at once.

    find ─> load ─> strict_yaml.read ─> tree ─> loading, along schema ─> Settings ─> checks.disagreements, keys
                          environment ─┘
    reread: load again, for a daemon that runs ─> changes: what is new, and what of it needs a restart

A room of modules, and not one, because it would have 700 lines. Nothing is clamped, and nothing given is ignored.
"""

from dispatcher.config.changes import Reread, reread
from dispatcher.config.loading import FILE_NAME, NOT_SETTINGS, find, load, parse
from dispatcher.config.plain_file import Stamp, stamp_of
from dispatcher.config.sample import sample

__all__ = ["FILE_NAME", "NOT_SETTINGS", "Reread", "Stamp", "find", "load", "parse", "reread", "sample", "stamp_of"]

"""The cases, a module for each kind or two."""

from tests.hostile.cases import checkpoints, damage, data, materials, ranks, run_folders, terminal, writes  # noqa: F401

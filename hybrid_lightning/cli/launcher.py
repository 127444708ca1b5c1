"""The devices of the Trainer beside what torchrun or srun has started."""

import os
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.utilities import rank_zero_warn

from hybrid_lightning.distributed.launch import devices_as_launched, idle_gpus, launched
from hybrid_lightning.distributed.lost_rank import end_with_parent, is_started_by_lightning, name_parent

_OF_GPUS = ("auto", "gpu", "cuda")
"""Accelerators that take the GPUs of a job."""


def follow_launcher(trainer: Namespace, plugins: Sequence[Any]) -> None:
    """Takes the devices that a launcher has started processes for; refuses others, which would wait for each other."""
    if is_started_by_lightning():  # as the config says, which the first process has checked
        end_with_parent()
    elif not has_environment(plugins):  # the user's own knows what it has started
        launch = launched(os.environ)
        idle = idle_gpus(os.environ, launch) if launch and trainer.devices == "auto" else None
        if idle and trainer.accelerator in _OF_GPUS:
            rank_zero_warn(f"trainer.devices: {idle}")
        trainer.devices = devices_as_launched(trainer.devices, trainer.num_nodes, launch)
        if launch is None:
            name_parent()


def as_list(value: Any) -> list[Any]:
    """A setting of which Lightning takes none, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def has_environment(plugins: Sequence[Any]) -> bool:
    """Whether plugins of the Trainer, or what a config says of them, tell how processes are started."""
    paths = [str(plugin.get("class_path")) for plugin in plugins if isinstance(plugin, Namespace | dict)]
    is_object = any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
    return is_object or any(path.endswith("Environment") for path in paths)

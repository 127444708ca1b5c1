"""Which batch fits on a device: tried with the model, data and optimizer of the run, halved when memory runs out."""

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from lightning.pytorch.utilities.seed import isolate_rng
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from hybrid_lightning.cli.config_files import origin_in
from hybrid_lightning.cli.launcher import as_list
from hybrid_lightning.cli.parser import Parsed
from hybrid_lightning.errors import ConfigError, reason
from hybrid_lightning.lightning_private import cluster_environment

_STEPS = 2  # the optimizer has its state after the first one
_SHARE = 0.9  # of the memory; the rest is for the copies of gradients that ranks exchange, and for longer samples
_FOUND = "HYBRID_LIGHTNING_BATCH_SIZE"
_PATIENCE = timedelta(minutes=30)
_FAREWELL = 60.0  # seconds in which the other processes have read what was found


def largest_that_fits(parsed: Parsed, share: int, device: torch.device) -> int:
    """The largest of `share`, its half, its quarter, ... with which two steps fit into the memory of the device."""
    size = share
    while not _fits(parsed, size, device):
        if size == 1:
            raise ConfigError("not even 1 sample fits on the device. Use a smaller model or smaller inputs.", "data")
        size //= 2
    return size


def _fits(parsed: Parsed, size: int, device: torch.device) -> bool:
    """Whether two steps with batches of this size need no more memory than there is; nothing of them is kept."""
    is_short = False
    with isolate_rng(), _with_less_memory(device), contextlib.redirect_stdout(io.StringIO()):
        try:
            _train(parsed, size)
        except _EnoughError:
            pass
        except Exception as error:
            if not isinstance(error, torch.OutOfMemoryError) and not is_oom_error(error):
                raise
            is_short = True
    garbage_collection_cuda()  # after the error, whose frames hold the tensors
    return not is_short


class _EnoughError(Exception):
    """Leaves the run of a trial."""


class _Enough(Callback):
    """Leaves a run after two steps, which keep the place in the schedules that they have in the whole of it."""

    def __init__(self) -> None:
        self._batches = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self._batches += 1
        if self._batches == _STEPS:
            raise _EnoughError


def _train(parsed: Parsed, size: int) -> None:
    """Trains a model that is made anew, on one device, with all that will ever train."""
    config = trial_config(parsed.config, size)
    options: Namespace = parsed.parser.instantiate_classes(config)
    plugins = _without_cluster(options.trainer.plugins)
    trainer = Trainer(**{**options.trainer, "callbacks": [_Enough()], "plugins": plugins})
    trainer.fit(options.model, datamodule=options.data)


def _without_cluster(plugins: Any) -> list[Any]:
    """The Trainer's plugins for a trial, which is one process, wherever the run has been started."""
    kept = [plugin for plugin in as_list(plugins) if not isinstance(plugin, ClusterEnvironment)]
    # under SLURM, Lightning's handlers of signals would save the trial and queue the job again
    return [*kept, LightningEnvironment()]


def trial_config(config: Namespace, size: int) -> Namespace:
    """The config of a run that tries a batch size: nothing is frozen that trains later, written, cached or selected."""
    trial = config.clone()
    trial.data.init_args.batch_size = size
    trial.checkpoint.mode = "min"
    trial.trainer.update(
        Namespace(  # type: ignore[no-untyped-call]
            devices=_first_device(trial.trainer.devices),
            num_nodes=1,
            strategy="auto",
            accumulate_grad_batches=1,
            num_sanity_val_steps=0,
            callbacks=None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
    )
    arguments = trial.model.init_args
    for option, value in (("start", "default"), ("cache", False), ("selection", "none")):
        if option in arguments:
            arguments[option] = value
    for part in (arguments.get("parts") or {}).values():
        if isinstance(part, dict) and _will_train(part, arguments):
            part["unfreeze"] = "always"
    return trial


def _first_device(devices: Any) -> Any:
    """The first of the Trainer's devices, such as ``2,`` of ``2,3``."""
    if isinstance(devices, list):
        return devices[:1]
    first, comma, _ = str(devices).partition(",")
    return first + comma if comma else 1


def _will_train(part: dict[str, Any], arguments: Namespace) -> bool:
    """Whether a part trains at some time; one that shares another's weights does when that one does."""
    origin = origin_in(part)
    defaults = (arguments.get(origin) if origin in ("pretrained", "untrained") else None) or {}
    schedule = part.get("unfreeze") or defaults.get("unfreeze")
    return schedule != "never" and origin != "random" and "share" not in part


@contextlib.contextmanager
def _with_less_memory(device: torch.device) -> Iterator[None]:
    """Within it a CUDA device has less memory than it has."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_per_process_memory_fraction(_SHARE, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def found_by_first(find: Callable[[], int], trainer: Trainer) -> int:
    """What the first process of a run finds, in each of its processes; the others wait for it."""
    # before the Trainer of the run is there, and so without its process group
    environment = cluster_environment(trainer)
    if not environment.creates_processes_externally:
        if trainer.num_nodes > 1:
            raise ConfigError(
                "what fits is found on several nodes under torchrun or srun alone. Give data.batch_size, the batch "
                "per device.",
                "--batch_size_total",
            )
        found = find()
        # for the processes that Lightning starts from this one
        os.environ[_FOUND] = f"{os.getpid()} {found}"
        return found
    # of the first run alone; the first process sets nothing for a further one, such as in a comparison
    process, _, inherited = os.environ.pop(_FOUND, "").partition(" ")
    if process == str(os.getppid()):
        return int(inherited)
    if trainer.world_size == 1:
        return find()
    is_first = trainer.global_rank == 0
    store = _store(environment.main_address, environment.main_port + 1, is_first)  # beside the process group's port
    return _told_by_first(find, store, trainer.world_size - 1) if is_first else _heard_from_first(store)


def _store(address: str, port: int, is_first: bool) -> TCPStore:
    """Where the first process writes for the others."""
    try:
        return TCPStore(address, port, is_master=is_first, timeout=_PATIENCE, wait_for_workers=False)
    except RuntimeError as error:
        raise ConfigError(
            f"the processes cannot tell each other what fits at {address}, port {port}: {reason(error)} Give "
            f"data.batch_size, the batch per device.",
            "--batch_size_total",
        ) from error


def _told_by_first(find: Callable[[], int], store: TCPStore, others: int) -> int:
    """What this process finds, which it writes into a store until all others have read it."""
    try:
        found = find()
    except BaseException as error:
        store.set(_FOUND, reason(error))
        _wait_for_readers(store, others)
        raise
    store.set(_FOUND, str(found))
    _wait_for_readers(store, others)
    return found


def _wait_for_readers(store: TCPStore, others: int) -> None:
    deadline = time.monotonic() + _FAREWELL
    while store.add("readers", 0) < others and time.monotonic() < deadline:
        time.sleep(0.05)


def _heard_from_first(store: TCPStore) -> int:
    text = store.get(_FOUND).decode()
    store.add("readers", 1)
    if not text.isdecimal():
        raise ConfigError(f"the first process could not find what fits: {text}", "--batch_size_total")
    return int(text)

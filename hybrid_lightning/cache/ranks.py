"""What ranks share of a cache: files, one set per machine, and the forward of sharded parts."""

import contextlib
import platform
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hybrid_lightning.cache.store import FeatureStore
from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.distributed.sharding import reshard
from hybrid_lightning.network.hybrid_network import HybridNetwork

_SLICE = 2**26  # bytes that ranks exchange at a time


def run_folder(trainer: Trainer) -> Path:
    """The folder of the run, as the first rank names it."""
    return Path(trainer.strategy.broadcast(str(trainer.log_dir or trainer.default_root_dir)))


def opened_store(
    trainer: Trainer,
    folder: Path,
    budget: float,
    samples: Mapping[str, str],
) -> FeatureStore:
    """The store of this rank in the folder of a run, with the files of its machine if ranks have the same samples.

    Collective; `samples` are the `samples_hashes` of the splits.
    """
    strategy = trainer.strategy
    token = strategy.broadcast(uuid.uuid4().hex)
    if trainer.world_size > 1:
        of_node = folder / f"feature_cache_{trainer.node_rank}"
        is_first = trainer.local_rank == 0
        has_same_samples = strategy.broadcast(samples) == samples
        sees_files = _sees_first_rank(trainer, of_node, token, is_first)
        if strategy.reduce_boolean_decision(has_same_samples and sees_files):
            is_on_first_node = strategy.broadcast(of_node) == of_node
            has_all = strategy.reduce_boolean_decision(is_on_first_node)
            return FeatureStore(of_node, budget, token, is_first, has_all)
    return FeatureStore(folder / f"feature_cache_{trainer.global_rank}", budget)


def _sees_first_rank(trainer: Trainer, folder: Path, token: str, is_first: bool) -> bool:
    """Whether what the first rank of this machine writes to a folder can be read here, on the same machine."""
    mark = folder / f"{token}.shared"
    # two machines may have one disk, but no memory of files in common
    machine = platform.node()
    if is_first:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            mark.write_text(machine, encoding="utf-8")
    trainer.strategy.barrier()
    found = None
    with contextlib.suppress(OSError):
        found = mark.read_text(encoding="utf-8")
    trainer.strategy.barrier()
    if is_first:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)
            folder.rmdir()
    return found == machine


def sum_over_ranks(tensor: Tensor, device: torch.device, is_own: bool = True) -> None:
    """Puts the ranks' shares together, in place; where a rank has none of the values there are zeros.

    A tensor that is not `is_own` is another rank's too, which gives its values and takes the sum.
    """
    # byte by byte, so that no value is rounded and any type can be sent
    values = tensor.view(-1).view(torch.uint8)
    for piece in torch.split(values, _SLICE):
        sent = piece.to(device, copy=True) if is_own else torch.zeros_like(piece, device=device)
        torch.distributed.all_reduce(sent)
        if is_own:
            piece.copy_(sent)


def has_whole_parts(strategy: Strategy, network: HybridNetwork) -> bool:
    """Whether each rank has all of the network's weights, or `gathered` can give them to it."""
    if type(strategy) is FSDP2Strategy:
        # added to torch after 2.6
        return hasattr(network, "reset_iter_state")
    return type(strategy) in (SingleDeviceStrategy, DDPStrategy)


@contextlib.contextmanager
def gathered(network: HybridNetwork) -> Iterator[None]:
    """Within it, what is frozen of a sharded network is whole on each rank, so that its forward waits for no other.

    Collective where the network is sharded; does nothing where it is not.
    """
    if not isinstance(network, FSDPModule):
        yield
        return
    reshard(network)
    inner = list(network.modules())[1:]
    frozen = [unit for unit in inner if isinstance(unit, FSDPModule) and _is_frozen(unit)]
    # makes the network the root of the units, before one of them would become it
    network.kept_outputs({}, ())
    for unit in frozen:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        # also after an error in a forward, which leaves the units in the middle of it
        network.reset_iter_state()
        for unit in frozen:
            unit.set_reshard_after_forward(True, recurse=False)


def _is_frozen(unit: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in unit.parameters())

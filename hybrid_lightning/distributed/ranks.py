"""Unfreezing on several ranks: rebuilds the wrapper, compares the ranks, refuses what cannot be exact."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.nn.parallel import DistributedDataParallel

from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.distributed.strategies import refuse_strategy
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.lightning_private import ddp_hook_state, ddp_options, has_gradient_hooks

_SLICE = 2**20  # values


def rewrap(trainer: Trainer) -> None:
    """Rebuilds DistributedDataParallel, which reduces only what was trainable when it was made."""
    # its options (static graph, communication hook, buffer broadcast) are those of the strategy, as before
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.lightning_module
        gc.collect()  # the old wrapper's hooks have to be gone before the new ones are set
        strategy.configure_ddp()
        refuse_other_reducer(strategy.model)
        fix_buckets(trainer)


def fix_buckets(trainer: Trainer) -> None:
    """Lets DistributedDataParallel lay its buckets out by what trains alone, before the first step. Collective."""
    # Else it does so after the first backward, and a run that goes on sums the gradients of its first step in another
    # order than the one that was never stopped: with three ranks or more other last bits.
    wrapper: Any = trainer.strategy.model
    # with find_unused_parameters buckets stay as they are
    if not isinstance(wrapper, DistributedDataParallel) or wrapper.find_unused_parameters:
        return
    is_sparse = any(getattr(module, "sparse", False) for module in wrapper.modules())
    if wrapper.static_graph or wrapper.mixed_precision is not None or is_sparse:  # it waits for other gradients
        return
    named = wrapper.module.named_parameters()
    ignored = wrapper.parameters_to_ignore
    trained = [value for name, value in named if value.requires_grad and name not in ignored]
    # all ranks do the same, while a logger may watch parameters on the first one alone
    if not trainer.strategy.reduce_boolean_decision(not _is_observed(wrapper, trained), all=True):
        return
    gradients = [parameter.grad for parameter in trained]
    for parameter in trained:
        parameter.grad = None
    with torch.enable_grad():
        # a backward whose gradients are 0, of which the last parameter comes first, as in that of a model
        nothing = sum((0 * parameter.real.sum() for parameter in trained), torch.zeros((), device=wrapper.device))
        wrapper.reducer.prepare_for_backward([])
        nothing.backward()
    wrapper.reducer._rebuild_buckets()
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.grad = gradient


def _is_observed(wrapper: Any, trained: Iterable[nn.Parameter]) -> bool:
    """Whether code of the user's would see a backward that is not of a step, and might count it or step by it."""
    if any(map(has_gradient_hooks, trained)):
        return True
    # without a state, or with a group of processes as that of torch's own, a communication hook remembers nothing
    states = [state for _, state in wrapper._comm_hooks]
    return not all(state is None or isinstance(state, ProcessGroup) for state in states)


def refuse_other_reducer(wrapper: Any) -> None:
    """Raises `RuntimeError` unless the wrapper reduces exactly the parameters that train."""
    wanted = [name for name, parameter in wrapper.module.named_parameters() if parameter.requires_grad]
    reduced = wrapper._get_ddp_logging_data()["num_parameter_tensors"]
    if reduced != len(wanted):
        raise RuntimeError(
            f"DistributedDataParallel reduces {reduced} parameters, but {len(wanted)} train, such as "
            f"{listing(wanted, 3)}. Ranks would drift apart; please report this as a bug."
        )


def refuse_other_strategies(trainer: Trainer) -> None:
    """Raises `ConfigError` under a strategy for which unfreezing is not known to be exact."""
    strategy = trainer.strategy
    refuse_strategy(strategy)
    # by type, because a class derived from one of these may do anything
    if type(strategy) not in (SingleDeviceStrategy, DDPStrategy, FSDP2Strategy):
        raise ConfigError(
            f"trainer.strategy: unfreezing under {type(strategy).__name__} would not be exact and is refused. "
            f"Use 'auto' or 'ddp', 'fsdp2' for a sharded model, or set 'unfreeze: always' for every part."
        )
    if ddp_options(strategy).get("static_graph") and trainer.accumulate_grad_batches > 1:
        raise ConfigError(
            "trainer.strategy: torch cannot accumulate gradients with static_graph=True. "
            "Leave static_graph out, or set trainer.accumulate_grad_batches to 1."
        )
    state = ddp_hook_state(strategy)
    if isinstance(state, PowerSGDState):
        raise _inexact_hook(state, "keeps an error per bucket, and the buckets change with every unfreezing")
    if isinstance(state, PostLocalSGDState):
        raise _inexact_hook(state, "lets the ranks differ between two averagings")


def _inexact_hook(state: object, reason: str) -> ConfigError:
    return ConfigError(
        f"trainer.strategy: {type(state).__name__} {reason}, so unfreezing would not be exact. "
        f"Use a hook without memory, such as fp16_compress_hook, or set 'unfreeze: always' for every part."
    )


def checksums(parameters: Iterable[Tensor]) -> Tensor:
    """A number per parameter that changes with any of its bits, `(number of parameters,)` int64."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for parameter in parameters:
        values = parameter.detach().contiguous()
        bits = values.view(integers[values.element_size()]).flatten()
        total = torch.zeros((), dtype=torch.int64, device=bits.device)
        for start in range(0, len(bits), _SLICE):  # in slices, to spare memory
            part = bits[start : start + _SLICE].to(torch.int64)
            # weights by position, so that two values that change places are seen
            weights = torch.arange(start + 1, start + 1 + len(part), device=bits.device)
            total += (part * weights).sum()
        sums.append(total)
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)


@contextmanager
def first_of_node_before_others(trainer: Trainer, is_needed: bool) -> Iterator[None]:
    """Lets the first rank of each node through, and the others when it is done: what it fetches is there for them.

    Collective, unless it is not needed. Where it fails its process ends, and with it the others' wait.
    """
    is_shared = is_needed and trainer.world_size > 1 and torch.distributed.is_initialized()
    if is_shared and trainer.local_rank > 0:
        torch.distributed.barrier()
    yield
    if is_shared and trainer.local_rank == 0:
        torch.distributed.barrier()


def refuse_different_ranks(trainer: Trainer, pl_module: LightningModule) -> None:
    """Raises `ConfigError`, on every rank, if the parameters of the ranks differ in any bit."""
    if trainer.world_size == 1 or not isinstance(trainer.strategy, DDPStrategy):
        return
    named = dict(pl_module.named_parameters())
    mine = checksums(named.values()).to(trainer.strategy.root_device)
    low, high = mine.clone(), mine.clone()
    torch.distributed.all_reduce(low, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(high, torch.distributed.ReduceOp.MAX)
    differ = (low != high).tolist()
    if any(differ):
        names = [name for name, other in zip(named, differ, strict=True) if other]
        raise ConfigError(
            f"trainer.strategy: after step {trainer.global_step} the ranks hold different values of "
            f"{listing(names, 4)}. Something changes parameters on one rank only: look for code that depends on the "
            f"rank, an optimizer step of your own, or a communication hook that is not exact."
        )

"""One rank of `test_spike_guard.py`: a run in which only the second rank's gradients have spikes."""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy

from hybrid_lightning import FSDP2Strategy, GradualUnfreezing, SpikeGuard
from hybrid_lightning.distributed.fsdp2 import end_process_group
from hybrid_lightning.distributed.sharding import whole
from tests.distributed.ddp_worker import Lazy, plain_norm
from tests.gradients.test_spike_guard import Faults
from tests.tiny import hybrid, trainer


def main(strategy: str, folder: Path) -> None:
    warnings.simplefilter("error")
    ignored = "LeafSpec|many workers|on_before_batch_transfer|SpikeGuard|sync_dist=True|val_dataloader|eval mode"
    warnings.filterwarnings("ignore", f".*({ignored}).*")
    torch.set_num_threads(1)
    guard = SpikeGuard(["warn", "skip"], ratio=20, warm_up=6)
    unfreezing = GradualUnfreezing({"old": "12 steps"}, check_ranks="epochs")
    faults = Faults("network.parts.new", [10, 14], 1e4, rank=1)
    strategies: dict[str, Any] = {"ddp": DDPStrategy(process_group_backend="gloo"), "fsdp2": FSDP2Strategy()}
    options = {"strategy": strategies[strategy], "use_distributed_sampler": False}
    runner = trainer(devices=2, callbacks=[faults, unfreezing, guard], **options)
    model = plain_norm(hybrid("12 steps", dropout=0.0))
    runner.fit(model, Lazy(runner, 2))
    tensors = {name: whole(value).clone() for name, value in model.state_dict().items()}
    state = {"model": tensors, "guard": guard.state_dict()}
    torch.save(state, folder / f"{runner.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    end_process_group()

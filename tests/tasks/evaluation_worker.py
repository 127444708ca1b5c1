"""One rank of `tasks/test_evaluation.py`: measures in a run, in `validate` and in `test`, and saves the metrics."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from hybrid_lightning import HybridTask
from hybrid_lightning.data.in_memory import as_batch
from hybrid_lightning.distributed.fsdp2 import end_process_group
from tests.small import classifier, loader, regressor, table, trainer


class Backwards(SequentialSampler):
    """A sampler of somebody's own, which Lightning shares among the ranks."""

    def __iter__(self) -> Any:
        return reversed(range(len(self.data_source)))


def loaders(kind: str, samples: int, ranks: int, rank: int) -> DataLoader[Any]:
    """Validation data; `kind` is how they are shared among the ranks."""
    target = torch.arange(samples) % 3
    target = table(samples, 1, seed=5)[:, 0] if kind == "regressor" else target
    plain = loader({"x": table(samples), "target": target}, batch_size=6)
    if kind == "sampler":
        sampler: Any = Backwards(plain.dataset)  # type: ignore[arg-type]
        return DataLoader(plain.dataset, batch_size=6, sampler=sampler, collate_fn=as_batch)
    if kind == "batch_sampler":
        sampler = DistributedSampler(plain.dataset, ranks, rank, shuffle=True)  # type: ignore[arg-type]
        return DataLoader(plain.dataset, batch_sampler=BatchSampler(sampler, 6, False), collate_fn=as_batch)
    return plain


def measured(kind: str, samples: int, ranks: int) -> list[dict[str, float]]:
    """Metrics of the validation in a run, of `validate` and of `test`."""
    torch.manual_seed(0)
    strategy: Any = DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto"

    runner = trainer(devices=ranks, strategy=strategy, use_distributed_sampler=kind != "batch_sampler")
    model: HybridTask = (regressor if kind == "regressor" else classifier)(lr=1e-12)
    model.build({"x": table(2)})
    training = loader({"x": table(8), "target": torch.zeros(8).to(torch.float if kind == "regressor" else torch.long)})
    data = loaders(kind, samples, ranks, runner.global_rank)
    runner.fit(model, training, data)
    found = {name: float(value) for name, value in runner.callback_metrics.items() if name.startswith("val/")}
    return [found, *runner.validate(model, data, verbose=False), *runner.test(model, data, verbose=False)]


def main(ranks: int, folder: Path, *cases: str) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings(
        "ignore", ".*(LeafSpec|many workers|Using `DistributedSampler`|on_before_batch_transfer|Total length).*"
    )
    torch.set_num_threads(1)
    found = {case: measured(case.split("-")[0], int(case.split("-")[1]), ranks) for case in cases}
    (folder / f"{os.environ.get('LOCAL_RANK', 0)}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    end_process_group()

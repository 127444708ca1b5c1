"""What a step of ``configs/elpv.yaml`` takes on more ranks, on paper: from one rank's steps and the bytes it reduces.

The model of the config with random weights, on generated images of its size and with its batch; EfficientNet-Lite0 is
frozen for the first half of the steps and trains in the second, an MLP on the cell's type always trains. Measured, for
each of the two phases: the processor time of a step of one rank, and the bytes of its gradients and buffers, which are
what DistributedDataParallel sends. Each rank keeps its batch. The time of a step on n ranks:

- compute: that of one rank, divided by ``--faster`` for devices that are so many times as fast;
- broadcast of the buffers before the step: their bytes / bandwidth + latency, for each doubling of the ranks;
- ring all-reduce of the gradients: 2 (n - 1) / n × their bytes / bandwidth + 2 (n - 1) × latency for each bucket;
- overlap: without, compute + broadcast + all-reduce; at best, broadcast + the larger of the other two.

Then the formula is compared with two gloo ranks on this machine: bandwidth and latency are those of gloo's own
all-reduce here, compute is that of two processes beside each other, and times are the least of all steps of a phase,
as other programs may disturb them.

RESULT step_time_efficiency: on 32 ranks at 10 Gbit/s without overlap, unfrozen; one rank's step / that of 32.
RESULT step_time_off_frozen, step_time_off_unfrozen: measured step of two ranks / that of the formula without overlap.

    python tests/benchmarks/step_time.py --steps 12 --threads 1
"""

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from hybrid_lightning import HybridClassifier
from hybrid_lightning.cli.config_files import read_config
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.errors import counted

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import started

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "elpv.yaml"
RANKS = (1, 2, 4, 8, 16, 32)
PHASES = ("frozen", "unfrozen")
SKIPPED = 2  # first steps of a phase, which allocate memory


class Link(NamedTuple):
    """What connects two ranks."""

    bandwidth: float  # bytes per second
    latency: float  # seconds


class Phase(NamedTuple):
    """What one rank does in a step of a phase."""

    compute: float  # seconds
    gradients: int  # bytes
    buckets: int
    buffers: int  # bytes


class StepTime(NamedTuple):
    """Seconds of a step: bounds by how much of the all-reduce hides behind the backward pass."""

    alone: float  # no part of it
    hidden: float  # as much as there is to hide it behind


def all_reduce_seconds(phase: Phase, ranks: int, link: Link) -> float:
    """A ring all-reduce of the gradients: each rank sends and receives every byte twice, but for its own share."""
    rounds = 2 * (ranks - 1)
    return rounds / ranks * phase.gradients / link.bandwidth + rounds * link.latency * phase.buckets


def broadcast_seconds(phase: Phase, ranks: int, link: Link) -> float:
    """A broadcast of the buffers along a binary tree."""
    return math.ceil(math.log2(ranks)) * (phase.buffers / link.bandwidth + link.latency)


def step_time(phase: Phase, ranks: int, link: Link) -> StepTime:
    """A step on so many ranks."""
    before, reduce = broadcast_seconds(phase, ranks, link), all_reduce_seconds(phase, ranks, link)
    return StepTime(before + phase.compute + reduce, before + max(phase.compute, reduce))


def efficiency(phase: Phase, ranks: int, link: Link) -> StepTime:
    """One rank's step / that of so many ranks, for both bounds."""
    found = step_time(phase, ranks, link)
    return StepTime(phase.compute / found.alone, phase.compute / found.hidden)


def print_table(phases: dict[str, Phase], links: dict[str, Link], faster: list[float]) -> None:
    """A line per phase, speed and bandwidth; a cell has the step without overlap, and both efficiencies."""
    header = "".join(f"{f'{ranks} ranks':<26}" for ranks in RANKS[1:])
    print(f"phase     compute     link          {header}".rstrip())
    for times in faster:
        for name, measured in phases.items():
            phase = measured._replace(compute=measured.compute / times)
            for link_name, link in links.items():
                cells = []
                for ranks in RANKS[1:]:
                    seconds, share = step_time(phase, ranks, link).alone, efficiency(phase, ranks, link)
                    cells.append(f"{1000 * seconds:.1f} ms, {share.alone:.0%} to {share.hidden:.0%}")
                line = "".join(f"{cell:<26}" for cell in cells)
                print(f"{name:<10}{f'{1000 * phase.compute:.1f} ms':<12}{link_name:<14}{line}".rstrip())


def model(steps: int) -> HybridClassifier:
    facts = read_config(CONFIG)["model"]["init_args"]
    cell = {**facts["parts"]["cell"], "weights": None, "unfreeze": f"{steps} steps"}
    return HybridClassifier(**{**facts, "parts": {**facts["parts"], "cell": cell}, "cache": False})


class Repeated(DictDataset):
    """The same samples again and again, so that many batches take the memory of one."""

    def __init__(self, entries: dict[str, torch.Tensor], times: int) -> None:
        super().__init__(entries)
        self.times = times

    def __len__(self) -> int:
        return self.times * super().__len__()

    def __getitems__(self, indices: Any) -> Any:
        different = super().__len__()
        return super().__getitems__([index % different for index in indices])


def data(ranks: int, steps: int) -> DataLoader[Any]:
    """Batches for two phases, of the size that the config has."""
    options = read_config(CONFIG)["data"]["init_args"]
    batch, side = options["batch_size"], options["size"]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, side, side, generator=generator)
    kinds = torch.randn(batch, 2, generator=generator)
    entries = {"image": images, "type": kinds, "target": (kinds[:, 0] > 0).long()}

    return DataLoader(Repeated(entries, ranks * 2 * steps), batch, collate_fn=as_batch)


class Watch(pl.Callback):
    """After each step: trainable parameters, seconds by both clocks, bytes and buckets that were reduced."""

    def __init__(self, count: Any) -> None:
        self.count = count
        self.rows: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        row = {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}
        row["trainable"] = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        row["reduced"], row["buckets"] = self.count.reduced, self.count.buckets
        self.count.reduced = self.count.buckets = 0
        self.rows.append(row)


def rank(steps: int, threads: int) -> None:
    """Trains, alone or as one of two ranks; prints the steps and gloo's speed as a line of JSON."""
    from reduced_bytes import Count, count_in  # beside this file

    torch.set_num_threads(threads)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    ranks = int(os.environ["WORLD_SIZE"])
    count = Count()
    watch = Watch(count)
    strategy: Any = "auto"
    if ranks > 1:
        strategy = DDPStrategy(process_group_backend="gloo")
        count_in(strategy, count)
    trainer = pl.Trainer(
        strategy=strategy,
        callbacks=[watch],
        accelerator="cpu",
        devices=ranks,
        max_steps=2 * steps,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    task = model(steps)
    trainer.fit(task, data(ranks, steps))
    found: dict[str, Any] = {"rows": watch.rows}
    found["buffers"] = sum(buffer.numel() * buffer.element_size() for buffer in task.buffers())
    if ranks > 1:
        latency = all_reduce_time(1)
        largest = int(max(row["reduced"] for row in watch.rows))
        found["latency"] = latency / 2  # a ring of two has two rounds
        found["bandwidth"] = largest / (all_reduce_time(largest // 4) - latency)  # and sends each byte once
    print(json.dumps(found), flush=True)


def all_reduce_time(numbers: int, times: int = 20) -> float:
    """The least seconds in which gloo reduces so many float32."""
    tensor, seconds = torch.ones(numbers), []
    for _ in range(times):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(tensor)
        seconds.append(time.perf_counter() - started)
        tensor.fill_(1)
    return min(seconds)


def run(processes: int, ranks: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What so many processes print that run beside each other, each alone or as a rank."""
    words = [__file__, "--steps", str(options.steps), "--threads", str(options.threads), "--rank"]
    with started(words, ranks, options.threads, processes, output=subprocess.PIPE) as running:
        outputs = [process.communicate(timeout=900)[0] for process in running]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def least(rows: list[dict[str, float]], clock: str) -> dict[str, float]:
    """The least seconds of a step, by phase."""
    fewest = min(row["trainable"] for row in rows)
    found = {}
    for name in PHASES:
        own = [row[clock] for row in rows if (row["trainable"] == fewest) == (name == "frozen")]
        found[name] = min(own[SKIPPED:])
    return found


def compare(phases: dict[str, Phase], two: dict[str, Any], beside: dict[str, float]) -> dict[str, float]:
    """Measured steps of two ranks / those of the formula, by phase."""
    link = Link(two["bandwidth"], two["latency"])
    print(f"gloo here: {link.bandwidth * 8 / 1e9:.1f} Gbit/s, {1e6 * link.latency:.0f} µs")
    measured, off = least(two["rows"], "wall"), {}
    for name, phase in phases.items():
        expected = step_time(phase._replace(compute=beside[name]), 2, link)
        off[name] = measured[name] / expected.alone
        print(
            f"two ranks, {name}: {1000 * measured[name]:.0f} ms a step; by the formula "
            f"{1000 * expected.hidden:.0f} to {1000 * expected.alone:.0f} ms, {1000 * beside[name]:.0f} of them compute"
        )
    return off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="Steps of each phase.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch, in each process.")
    parser.add_argument("--gbit", type=float, nargs="+", default=[1, 10, 100], help="Bandwidths in Gbit/s.")
    parser.add_argument("--latency_us", type=float, default=30, help="Latency of a message in microseconds.")
    parser.add_argument("--faster", type=float, nargs="+", default=[1, 50], help="Speeds of a device over this one.")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options.steps, options.threads)
        return
    alone = run(1, 1, options)[0]
    two = run(2, 2, options)[0]
    beside = [least(one["rows"], "wall") for one in run(2, 1, options)]
    phases = {}
    for name, row in zip(PHASES, (two["rows"][SKIPPED], two["rows"][-1]), strict=True):
        compute = least(alone["rows"], "cpu")[name]
        phases[name] = Phase(compute, int(row["reduced"]), int(row["buckets"]), alone["buffers"])
        size, buckets = phases[name].gradients, counted(phases[name].buckets, "bucket")
        print(f"{name}: {compute:.3f} s a step, {size:,} bytes in {buckets}")
    print(f"buffers: {alone['buffers']:,} bytes; latency of a message: {options.latency_us:g} µs")
    links = {f"{gbit:g} Gbit/s": Link(gbit * 1e9 / 8, options.latency_us / 1e6) for gbit in options.gbit}
    print_table(phases, links, options.faster)
    off = compare(phases, two, {name: max(one[name] for one in beside) for name in PHASES})
    at_32 = efficiency(phases["unfrozen"], 32, Link(10e9 / 8, options.latency_us / 1e6))
    print(f"RESULT step_time_efficiency {at_32.alone:.3f} ratio")
    for name in PHASES:
        print(f"RESULT step_time_off_{name} {off[name]:.3f} ratio")


if __name__ == "__main__":
    main()

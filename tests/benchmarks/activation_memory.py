"""What ``checkpoint_activations`` saves and costs: a forward and a backward pass of a part with it, against without.

Two parts, each under a linear head: a `ResidualConv2d` with BatchNorm on images of 64 pixels, whose five stages run
again one by one, and a `SequenceTransformer` of 8 layers, which is a stage each. Bytes are those of the tensors that
the backward pass needs, as torch.autograd.graph.saved_tensors_hooks sees them at the end of the forward pass, when they
are most; tensors that share memory count once, parameters not at all. What a stage keeps while it runs again is not
among them, so that the peak of a step is counted besides: the most bytes of memory that tensors have made within it had
at one time, gradients among them. Gradients are compared bit by bit, with dropout.

RESULT activation_memory: bytes kept for the backward pass with / without, of the transformer.
RESULT activation_memory_peak: the peak of the step with / without.
RESULT activation_memory_time: median time of a step with / without.
RESULT activation_memory_images, RESULT activation_memory_images_peak, RESULT activation_memory_images_time: the same of
the residual net.

    python tests/benchmarks/activation_memory.py --rounds 9 --threads 1
"""

import argparse
import statistics
import time
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybrid_lightning import HybridClassifier

BATCH = 32
PARTS: dict[str, tuple[dict[str, Any], Tensor]] = {
    "activation_memory": (
        {"module": "SequenceTransformer", "args": {"width": 128, "depth": 8}},
        torch.randn(BATCH, 64, 16),
    ),
    "activation_memory_images": (
        {"module": "ResidualConv2d", "args": {"channels": [32, 64, 128, 256], "dropout": 0.1}},
        torch.randn(BATCH, 3, 64, 64),
    ),
}


class Peak(TorchDispatchMode):
    """The most bytes at one time of memory that is made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._seen or not size:
            return
        self.now += size
        self.most = max(self.most, self.now)
        self._seen[place] = weakref.finalize(storage, self._forget, place, size)

    def _forget(self, place: int, size: int) -> None:
        del self._seen[place]
        self.now -= size


def task(part: dict[str, Any], inputs: Tensor, is_checkpointed: bool) -> HybridClassifier:
    torch.manual_seed(0)
    model = HybridClassifier(2, parts={"x": {**part, "checkpoint_activations": is_checkpointed}})
    model.build({"x": inputs})
    model.train()
    return model


def loss_of(model: HybridClassifier, inputs: Tensor) -> Tensor:
    torch.manual_seed(1)
    return model.built()({"x": inputs}).square().sum()


def kept_bytes(model: HybridClassifier, inputs: Tensor) -> int:
    """Bytes that are kept at the end of a forward pass, without those of parameters and of the inputs."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), inputs)}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model, inputs)
    del loss
    return sum(sizes.values())


def peak_bytes(model: HybridClassifier, inputs: Tensor) -> int:
    with Peak() as peak:
        loss_of(model, inputs).backward()
    return peak.most


def timed(model: HybridClassifier, inputs: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    start = time.perf_counter()
    loss_of(model, inputs).backward()
    return time.perf_counter() - start


def compare(name: str, part: dict[str, Any], inputs: Tensor, rounds: int) -> None:
    models = [task(part, inputs, is_checkpointed) for is_checkpointed in (True, False)]
    kept = [kept_bytes(model, inputs) for model in models]
    for model in models:
        model.zero_grad()
    peaks = [peak_bytes(model, inputs) for model in models]
    gradients = [[parameter.grad for parameter in model.parameters()] for model in models]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    ratios = [timed(models[0], inputs) / timed(models[1], inputs) for _ in range(rounds)]
    print(f"{name}: kept {kept[0]:,} / {kept[1]:,} bytes, peak {peaks[0]:,} / {peaks[1]:,} bytes, gradients bit-equal")
    print(f"RESULT {name} {kept[0] / kept[1]:.3f} ratio")
    print(f"RESULT {name}_peak {peaks[0] / peaks[1]:.3f} ratio")
    print(f"RESULT {name}_time {statistics.median(ratios):.3f} ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description="What checkpoint_activations saves and costs.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, (part, inputs) in PARTS.items():
        compare(name, part, inputs, options.rounds)


if __name__ == "__main__":
    main()

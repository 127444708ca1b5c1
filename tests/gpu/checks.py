"""The checks in the order of their value."""

from collections.abc import Callable

import torch

from hybrid_lightning.network.modules.random_convolutions import RandomConvolutions
from tests.gpu.fits import (
    bfloat16,
    compiled_part,
    conformance,
    exact_resume,
    frozen_cache,
    fused_optimizer,
    half_precision,
    no_synchronization,
)
from tests.gpu.model import fit, task
from tests.gpu.ranks import two_ddp_ranks, two_fsdp2_ranks
from tests.gpu.speed import against_by_hand


def random_convolutions(device: str) -> str:
    """Features that are never trained are the same on the CPU and on the device."""
    # eighths have exact sums, so that no rounding turns a comparison
    series = torch.randint(-40, 40, (8, 2, 120), generator=torch.Generator().manual_seed(0)) / 8
    module = RandomConvolutions([2, 120], 1000, pool=["share", "mean", "index", "stretch"], seed=0)
    module.prepare([[series]])
    wanted = module(series)
    found = module.to(device)(series.to(device)).cpu()
    distance = float((wanted - found).abs().max())
    assert distance < 1e-4, f"a feature is off by {distance:.1e}"
    return f"{wanted.shape[1]} features off by at most {distance:.0e}"


def precision_of_float32(device: str) -> str:
    """A run leaves the precision of float32 products as it is, and that is said."""
    before = settings()
    fit(device, task("never"), max_epochs=1)
    assert settings() == before, f"{before} → {settings()}"
    return before


def settings() -> str:
    state = "on" if torch.backends.cudnn.allow_tf32 else "off"
    return f"float32 matmul precision {torch.get_float32_matmul_precision()!r}, TF32 in cuDNN {state}"


CHECKS: dict[str, Callable[[str], str]] = {
    "frozen parts, norms and unfreezings": conformance,
    "exact resume within an epoch": exact_resume,
    "no synchronization between log steps": no_synchronization,
    "16-mixed with a scaler": half_precision,
    "bf16-mixed": bfloat16,
    "two ranks with ddp": two_ddp_ranks,
    "two ranks with fsdp2": two_fsdp2_ranks,
    "the optimizer is fused": fused_optimizer,
    "time and memory against a loop by hand": against_by_hand,
    "cache of frozen features": frozen_cache,
    "random convolutions as on the CPU": random_convolutions,
    "a compiled part": compiled_part,
    "precision of float32": precision_of_float32,
}
"""Title → check of a device, which returns what it measured, or raises."""

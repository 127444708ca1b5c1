"""What `GradientNormMonitor` logs, computed in another way."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.distributed.tensor import DTensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, which every rank has to ask for."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class ByHand(pl.Callback):
    """Norms from autograd's gradients and from weights, one parameter at a time, in float64; per part and stage."""

    def __init__(self) -> None:
        self.before: list[dict[str, float]] = []
        self.after: list[dict[str, float]] = []
        self.ratios: list[dict[str, float]] = []

    @staticmethod
    def combined(groups: list[dict[str, Any]], values: Any) -> dict[str, float]:
        squares: dict[str, float] = {}
        for group in groups:
            stage = group["name"].split("/")[0]
            for p in group["params"]:
                for row in {group["part"], stage, "total"}:
                    squares[row] = squares.get(row, 0.0) + whole(values(p)).double().pow(2).sum().item()
        return {row: square**0.5 for row, square in squares.items()}

    def gradients(self, groups: list[dict[str, Any]]) -> dict[str, float]:
        return self.combined(groups, lambda p: torch.zeros(()) if p.grad is None else p.grad)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.before.append(self.gradients(optimizer.param_groups))
        self.weights = {p: p.detach().clone() for g in optimizer.param_groups for p in g["params"]}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        if len(self.before) > len(self.after):
            self.after.append(self.gradients(groups))
            own = [{**g, "params": [p for p in g["params"] if p.grad is not None]} for g in groups]
            moved = self.combined(own, lambda p: p.detach() - self.weights[p])
            old = self.combined(own, lambda p: self.weights[p])
            self.ratios.append({row: moved[row] / old[row] for row in moved})


class Rows(CSVLogger):
    """Keeps the rows that have norms, on every rank."""

    def __init__(self, folder: Any) -> None:
        super().__init__(folder)
        self.rows: list[dict[str, Any]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(key.startswith("grad_norm") for key in metrics):
            self.rows.append({**metrics, "step": step})


def compare(rows: list[dict[str, Any]], by_hand: ByHand) -> None:
    """Asserts that each row, one a step, has the norms and ratios computed by hand, and no others."""
    assert len(rows) == len(by_hand.before) == len(by_hand.after)
    for index, row in enumerate(rows):
        before, after = by_hand.before[index], by_hand.after[index]
        assert row["step"] == index
        keys = {"grad_norm": before, "grad_norm_clipped": after, "update_ratio": by_hand.ratios[index]}
        for key, wanted in keys.items():
            assert {k.removeprefix(f"{key}/") for k in row if k.startswith(f"{key}/")} == wanted.keys()
            for part, norm in wanted.items():
                # of a small update float32 keeps few digits of w - w₀: those of w are lost
                precise = {"rel": 1e-6, "abs": 1e-9} if key != "update_ratio" else {"rel": 1e-6, "abs": 1e-7}
                assert row[f"{key}/{part}"] == pytest.approx(norm, **precise), (key, part)
        assert row["clip_coef"] == pytest.approx(after["total"] / before["total"], rel=1e-6)
        for part, norm in before.items():
            assert row[f"clip_rate/{part}"] == (after[part] < norm * (1 - 1e-6))

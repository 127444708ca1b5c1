import copy
import dataclasses
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from hybrid_lightning import ConfigError
from tests.tiny import batches, hybrid, trainer

GRAPHS: list[int] = []


def counted(graph: Any, inputs: Any) -> Any:
    """A backend of torch.compile that counts its compilations and needs no C++ compiler."""
    GRAPHS.append(1)
    return aot_eager(graph, inputs)


class Counts(pl.Callback):
    """Number of compiled graphs after each step."""

    def __init__(self) -> None:
        self.after: dict[int, int] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        self.after[trainer.global_step] = len(GRAPHS)


def fitted(compile: Any, counts: Counts) -> Any:
    model = hybrid({"start": "6 steps", "every": "5 steps"}, dropout=0.0)
    model.parts["old"] = dataclasses.replace(model.parts["old"], compile=compile)
    trainer(callbacks=[counts]).fit(model, batches(), batches(samples=12))
    return model


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # inside torch.compile
def test_a_compiled_part_learns_the_same_and_is_compiled_again_only_when_something_unfreezes() -> None:
    torch._dynamo.reset()
    torch._dynamo.register_backend(counted, name="counted")
    plain, compiled = fitted(False, Counts()), fitted({"backend": "counted"}, counts := Counts())
    assert all(torch.equal(value, compiled.state_dict()[name]) for name, value in plain.state_dict().items())
    changes = [step for step in range(2, 21) if counts.after[step] > counts.after[step - 1]]
    assert set(changes) <= {7, 12, 17} | {8, 13, 18} | {6, 11, 16}, (
        "training after an unfreezing, and the next validation"
    )
    assert {7, 12, 17} <= set(changes)
    rebuilt = copy.deepcopy(compiled)
    assert rebuilt.state_dict().keys() == plain.state_dict().keys()


def test_what_compile_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.parts\.old\.compile: torch\.compile refuses .*speed"):
        fitted({"speed": "high"}, Counts())

"""Each strategy that Lightning knows by a name is kept or refused, and nothing is left to chance."""

import re
from typing import Any

import pytest
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)

from hybrid_lightning import ConfigError, FSDP2Strategy
from hybrid_lightning.distributed.strategies import KEPT, refuse_strategy, refuse_strategy_name
from tests.small import changed, classifier, command, table, trainer

CHILDREN = "child processes, with which the trained model would be lost. Use 'ddp' in a script"
SHARDED = "Use 'fsdp2', which shards too, or 'ddp'."
TPU = "on TPUs at large. Use 'auto' or 'ddp'"
REFUSED = {
    "ddp_spawn": CHILDREN,
    "ddp_fork": CHILDREN,
    "ddp_notebook": CHILDREN,
    "deepspeed": SHARDED,
    "fsdp": SHARDED,
    "xla": TPU,
    "single_xla": TPU,
    "single_tpu": TPU,
}
"""Name, or the beginning of several, up to an underscore → words of the message."""


def words_for(name: str) -> str | None:
    """What the message for a name says; None if it is kept."""
    if name in KEPT:
        return None
    [words] = [words for start, words in REFUSED.items() if name == start or name.startswith(f"{start}_")]
    return words


@pytest.mark.parametrize("name", StrategyRegistry.available_strategies())
def test_every_name_is_kept_or_refused_with_what_to_use_instead(name):
    words = words_for(name)
    if words is None:
        refuse_strategy_name(name)
        return
    with pytest.raises(ConfigError, match=f"^trainer.strategy: under '{name}'") as refused:
        refuse_strategy_name(name)
    assert words in str(refused.value)


def test_all_names_that_are_kept_are_known_to_the_trainer():
    assert set(KEPT) - {"auto"} <= set(StrategyRegistry.available_strategies())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("deepspeed_stage_2", f"trainer.strategy: under 'deepspeed_stage_2' unfreezing.* {SHARDED}"),
        ("FSDP", f"trainer.strategy: under 'FSDP' unfreezing.* {SHARDED}"),
        ("xla", "trainer.strategy: under 'xla' nothing has been tested"),
        ("ddp_notebook", r"under 'ddp_notebook', which starts processes by 'fork', the run .*!python -m"),
        ("fsdp3", "trainer.strategy: unknown strategy 'fsdp3'. Did you mean 'fsdp2'"),
        ('{"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"start_method": "fork"}}', CHILDREN),
    ],
)
def test_the_command_line_refuses_it_in_a_line_before_anything_starts(name, words, folder, capsys):
    assert command("fit", "--trainer.strategy", name, config=changed()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(words, line), line
    assert not list(folder.rglob("*.ckpt"))


class OwnDDP(DDPStrategy):
    """A refinement of one that is known; where something unfreezes `refuse_other_strategies` refuses it."""


def test_strategies_are_judged_by_their_classes():
    for kept in (SingleDeviceStrategy(), DDPStrategy(), FSDP2Strategy(), OwnDDP()):
        refuse_strategy(kept)
    own: Any = type("Own", (Strategy,), {})  # of which nothing is known
    own.__abstractmethods__ = frozenset()
    for refused in (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy, own):
        made: Any = object.__new__(refused)  # as its libraries may be missing
        with pytest.raises(ConfigError, match=rf"^trainer\.strategy: under {refused.__name__} .* Use 'fsdp2'"):
            refuse_strategy(made)


def test_a_trainer_of_ones_own_is_refused_whatever_it_does_with_the_model(monkeypatch):
    run = trainer()
    monkeypatch.setattr(type(run), "strategy", property(lambda _: object.__new__(FSDPStrategy)))
    model = classifier()
    model.build({"x": table()})
    model.trainer = run
    with pytest.raises(ConfigError, match="under FSDPStrategy"):
        model.configure_model()

"""Private names of Lightning: only ``lightning_private`` uses them, and each of its entries means what it says."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, model_parallel
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, RandomSampler

import hybrid_lightning
from hybrid_lightning import lightning_private
from hybrid_lightning.lightning_private import (
    BatchCheckingModule,
    RankingCheckpoint,
    _RememberingSource,
    accumulates,
    attach,
    average_of,
    batch_as_given,
    cluster_environment,
    combination_of,
    data_fetcher,
    ddp_hook_state,
    ddp_options,
    forget_restart,
    hands_out_iterator,
    has_gradient_hooks,
    holders,
    in_new_containers,
    is_compiled,
    is_local,
    is_plain_on_cpu,
    is_restoring,
    loaders_as_given,
    loaders_to_read,
    log_train_step,
    logged_steps,
    remember_loaders,
    restart_at_epoch_start,
    restart_within_validation,
    save_now,
    saves_shares,
    set_average,
    set_data_parallel_size,
    set_logged_steps,
    shared_log_keys,
    skip_empty_hooks,
    start_method,
    trainer_of,
    validation_fetcher,
    validation_is_due,
    wrapped_samplers,
    write_count,
)
from hybrid_lightning.resume.samplers import held_generators
from tests.small import trainer

ROOT = Path(hybrid_lightning.__file__).parent
DOOR = Path(lightning_private.__file__)
FILES = [file for file in sorted(ROOT.rglob("*.py")) if file != DOOR]
LIGHTNING = Path(lightning.__file__).parent

OF_TORCH = ("_version",)
"""Names that Lightning defines in private, and torch for its tensors."""

# The rule: other files use no private name of Lightning


class Privates(NamedTuple):
    """The private names that the installed Lightning defines: all, and those of each class by its dotted path."""

    names: set[str]
    of_class: dict[str, set[str]]


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.startswith("__")


def defined_in(tree: ast.AST) -> set[str]:
    """Names of functions, classes, variables and attributes that a tree defines at any depth."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return {name for name in found if is_private(name)}


@cache
def privates() -> Privates:
    found = Privates(set(), {})
    for room in ("pytorch", "fabric"):
        for file in (LIGHTNING / room).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            found.names.update(defined_in(tree))
            parts = file.relative_to(LIGHTNING.parent).with_suffix("").parts
            module = ".".join(part for part in parts if part != "__init__")
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    found.of_class[f"{module}.{node.name}"] = defined_in(node) - {node.name}
    return found


def of_lightning(module: str) -> bool:
    return module.partition(".")[0] in ("lightning", "lightning_fabric", "pytorch_lightning")


def private_imports(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        paths = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        paths = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return
    for path in paths:
        if of_lightning(path) and any(is_private(part) for part in path.split(".")):
            yield f"imports {path}"


def is_own(value: ast.expr) -> bool:
    """Whether an attribute is taken of ``self``, ``cls`` or ``super()``; what these may not have, their class says."""
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id == "super"
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def private_accesses(node: ast.AST) -> Iterator[str]:
    """Attributes of other objects, and names written as text, as for ``getattr``, ``vars`` or ``attrgetter``."""
    if isinstance(node, ast.Attribute) and not is_own(node.value):
        names = [node.attr]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        names = node.value.split(".")
        if not all(name.isidentifier() for name in names):
            return
    else:
        return
    for name in names:
        if is_private(name) and name in privates().names and name not in OF_TORCH:
            yield f"reaches for {name}"


def heirs(cls: type) -> list[type]:
    """A class and those of the same package that derive from it; one of them is the ``self`` of a mixin."""
    found, package = [cls], cls.__module__.split(".")[0]
    for one in found:  # grows while it is read
        found += [heir for heir in one.__subclasses__() if heir.__module__.split(".")[0] == package]
    return found


def forbidden_in(cls: type) -> set[str]:
    """The private names that Lightning's classes among the parents define."""
    found: set[str] = set()
    for heir in heirs(cls):
        for parent in heir.__mro__:
            found |= privates().of_class.get(f"{parent.__module__}.{parent.__qualname__}", set())
    return found


def private_overrides(node: ast.ClassDef, cls: type) -> Iterator[str]:
    forbidden = forbidden_in(cls)
    for name in sorted(forbidden & defined_in(node)):
        yield f"{node.name} defines {name}"
    for inner in ast.walk(node):
        own = isinstance(inner, ast.Attribute) and is_own(inner.value)
        if own and isinstance(inner.ctx, ast.Load) and inner.attr in forbidden:
            yield f"{node.name} uses {inner.attr}"


def private_uses(source: str, names: dict[str, Any]) -> list[str]:
    """What a module does that only ``lightning_private`` may do.

    Args:
        source: Of the module.
        names: The module's globals, where its classes are found.
    """
    tree = ast.parse(source)
    found: list[str] = []
    for node in ast.walk(tree):
        found += [*private_imports(node), *private_accesses(node)]
        if isinstance(node, ast.ClassDef):
            assert node in tree.body, f"{node.name}: a class within another or in a function is not followed"
            found += private_overrides(node, names[node.name])
    return found


def module_of(file: Path) -> dict[str, Any]:
    path = file.relative_to(ROOT.parent).with_suffix("")
    return vars(importlib.import_module(".".join(part for part in path.parts if part != "__init__")))


def test_only_lightning_private_uses_private_names_of_lightning():
    modules = {file: module_of(file) for file in FILES}  # all, before any asks which classes derive from its own
    found = {
        str(file.relative_to(ROOT)): private_uses(file.read_text(encoding="utf-8"), modules[file]) for file in FILES
    }
    assert {name: uses for name, uses in found.items() if uses} == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from lightning.fabric.utilities.types import _PATH", "imports lightning.fabric.utilities.types._PATH"),
        ("import lightning.fabric._graveyard", "imports lightning.fabric._graveyard"),
        ("from pytorch_lightning._graveyard import tpu", "imports pytorch_lightning._graveyard.tpu"),
        ("def f():\n    from lightning.pytorch import _logger", "imports lightning.pytorch._logger"),
        ("f = lambda trainer: trainer.fit_loop._data_fetcher", "reaches for _data_fetcher"),
        ("def f(loop): loop._restarting = False", "reaches for _restarting"),
        ("def f(loop): del loop._restarting", "reaches for _restarting"),
        ("def f(x): return x.call()._should_accumulate", "reaches for _should_accumulate"),
        ("class A:\n    def f(self): return self.loop._should_accumulate()", "reaches for _should_accumulate"),
        ("f = lambda x: getattr(x, '_ddp_kwargs', {})", "reaches for _ddp_kwargs"),
        ("f = lambda x: hasattr(x, '_sampler')", "reaches for _sampler"),
        ("f = lambda x: setattr(x, '_mode', 1)", "reaches for _mode"),
        ("f = lambda x: vars(x)['_mode']", "reaches for _mode"),
        ("f = operator.attrgetter('fit_loop._data_fetcher')", "reaches for _data_fetcher"),
        ("class A(LightningCLI):\n    def _set_seed(self): pass", "A defines _set_seed"),
        ("class A(CSVLogger):\n    def f(self): self._experiment = 1", "A defines _experiment"),
        ("class A(CSVLogger):\n    _experiment = None", "A defines _experiment"),
        ("class A(LightningCLI):\n    def f(self): return self._get(1, 2)", "A uses _get"),
        ("class A(LightningCLI):\n    def f(self): return super()._set_seed()", "A uses _set_seed"),
        ("class A(LightningCLI):\n    f = classmethod(lambda cls: cls._set_seed())", "A uses _set_seed"),
        ("class A(RunLogger):\n    def f(self): return self._experiment", "A uses _experiment"),
        (
            "class A:\n    def f(self): return self._monitor_candidates(1)\nclass B(A, ModelCheckpoint): pass",
            "A uses _monitor_candidates",
        ),
    ],
)
def test_the_rule_finds_every_kind_of_use(source, expected):
    names: dict[str, Any] = {"__name__": "made_up"}
    exec(
        "import operator\nfrom hybrid_lightning.cli.metrics_table import RunLogger\n"
        "from lightning.pytorch.cli import LightningCLI\n"
        "from lightning.pytorch.callbacks import ModelCheckpoint\nfrom lightning.pytorch.loggers import CSVLogger",
        names,
    )
    if "import" not in source:
        exec(source, names)
    assert private_uses(source, names) == [expected]


@pytest.mark.parametrize(
    "source",
    [
        "from lightning.pytorch import Trainer",
        "from torch.serialization import _get_layout",
        "def f(x): return x._of_somebody_else",
        "class A:\n    def f(self): self._data_fetcher = self._restarting = 1",
        "class A(dict):\n    def _set_seed(self): return super()._set_seed()",
        "class A(Trainer):\n    def _ours(self): self._neither = self._ours()",
    ],
)
def test_the_rule_lets_what_is_ours_or_of_others_pass(source):
    names: dict[str, Any] = {"__name__": "made_up", "Trainer": pl.Trainer}
    exec(source, names)
    assert private_uses(source, names) == []


def test_the_door_imports_nothing_of_ours():
    assert "hybrid_lightning" not in DOOR.read_text(encoding="utf-8")


def test_every_entry_is_named_by_a_test():
    entries = [name for name, value in vars(lightning_private).items() if inspect.getmodule(value) is lightning_private]
    assert len(entries) > 20
    tests = [value for name, value in globals().items() if name.startswith("test_") or value in (Tiny, Watch)]
    text = "".join(inspect.getsource(test) for test in tests)
    named = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert sorted(set(entries) - named) == []


# The entries: each against the installed Lightning


class Rows(Logger):
    """Notes what it is given: step and names."""

    name = version = "rows"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, set[str]]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, set(metrics)))


class Tiny(pl.LightningModule):
    """One weight; the hook of batches adds 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch + 1

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.layer(batch).mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class ReadsByItself(Tiny):
    def training_step(self, dataloader_iter: Any) -> Any:
        batch, _, _ = next(dataloader_iter)
        return self.layer(batch).mean()


class Watch(pl.Callback):
    """Asks at each moment of a run of five batches, two for a step, with a validation after every second."""

    def __init__(self, checkpoint: ModelCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.seen: dict[str, list[Any]] = {}

    def note(self, **values: Any) -> None:
        for name, value in values.items():
            self.seen.setdefault(name, []).append(value)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        remember_loaders(trainer)
        self.note(to_read=loaders_to_read(trainer), early=data_fetcher(trainer), early_due=validation_is_due(trainer))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(early_validation=validation_fetcher(trainer))
        set_logged_steps(trainer, 100)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.note(given=batch_as_given(trainer, pl_module, torch.zeros(2, 1)), before=trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        fetcher = data_fetcher(trainer)
        self.note(
            reads=fetcher.combined_loader.flattened, fetched=fetcher.fetched, iterator=hands_out_iterator(fetcher)
        )
        self.note(stepped=trainer.global_step > self.seen["before"][-1], accumulates=accumulates(trainer))
        self.note(due=validation_is_due(trainer), logged=logged_steps(trainer))
        if batch_idx == 1:
            rows = trainer.logger.rows
            before = len(rows)
            log_train_step(trainer)
            self.note(logged_at_once=rows[before:])
            save_now(self.checkpoint, trainer)
            self.note(saved=Path(self.checkpoint.best_model_path))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(validated_after=trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        self.note(validates=validation_fetcher(trainer).combined_loader.flattened)


class Fit(NamedTuple):
    seen: dict[str, list[Any]]
    rows: list[tuple[int | None, set[str]]]
    train: DataLoader[Any]
    val: DataLoader[Any]
    trainer: pl.Trainer


@pytest.fixture(scope="module")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    checkpoint = ModelCheckpoint(tmp_path_factory.mktemp("kept"), "now", every_n_epochs=99, save_weights_only=True)
    watch, logger = Watch(checkpoint), Rows()
    train, val = DataLoader(torch.ones(10, 1), 2), DataLoader(torch.ones(2, 1), 2)
    fitted = trainer(
        logger=logger,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        accumulate_grad_batches=2,
        val_check_interval=2,
        enable_checkpointing=True,
        callbacks=[watch, checkpoint],
    )
    fitted.fit(Tiny(), train, val)
    return Fit(watch.seen, logger.rows, train, val, fitted)


def test_data_fetcher_is_what_a_fit_reads_from(fit):
    assert all(loaders == [fit.train] for loaders in fit.seen["reads"])
    assert fit.seen["fetched"] == [1, 2, 3, 4, 5]
    assert fit.seen["early"] == [None] == [data_fetcher(fit.trainer)]


def test_validation_fetcher_is_what_a_validation_reads_from(fit):
    assert fit.seen["validates"] == [[fit.val], [fit.val]]
    assert fit.seen["early_validation"] == [None] == [validation_fetcher(fit.trainer)]


@pytest.mark.filterwarnings("ignore:(?s).*`dataloader_iter`")
def test_hands_out_iterator_if_the_module_reads_by_itself(fit):
    assert not any(fit.seen["iterator"])
    told = []

    class Ask(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            told.append(hands_out_iterator(data_fetcher(trainer)))

    trainer(callbacks=[Ask()], max_steps=1).fit(ReadsByItself(), DataLoader(torch.ones(2, 1)))
    assert told == [True]


def test_validation_is_due_after_the_batches_that_a_validation_follows(fit):
    due = [number for number, is_due in enumerate(fit.seen["due"], 1) if is_due]
    assert due == fit.seen["validated_after"] == [2, 4]
    assert fit.seen["early_due"] == [False] == [validation_is_due(fit.trainer)]


def test_accumulates_after_the_batches_that_make_no_step(fit):
    assert fit.seen["accumulates"] == [True, False, True, False, False]
    assert fit.seen["stepped"] == [not waits for waits in fit.seen["accumulates"]]


def test_logged_steps_is_the_step_that_loggers_are_given(fit):
    # counted after the hook of the batch that makes the step
    assert fit.seen["logged"] == [100, 100, 101, 101, 102]
    assert logged_steps(fit.trainer) == 103 != fit.trainer.global_step


def test_set_logged_steps_moves_the_rows_that_follow(fit):
    steps = [step for step, names in fit.rows if "loss" in names]
    assert steps == [100, 100, 101, 102]  # 100 twice, because the test of log_train_step logs it too


def test_log_train_step_gives_the_loggers_the_step_at_once(fit):
    [[(step, names)]] = fit.seen["logged_at_once"]
    assert (step, names) == (100, {"loss", "epoch"})


def test_loaders_to_read_are_known_before_the_trainer_shows_them(fit):
    assert fit.seen["to_read"] == [fit.train]


def test_remember_loaders_keeps_them_as_they_were_given(fit):
    assert loaders_as_given(fit.trainer) == [fit.train]
    assert loaders_as_given(trainer()) == []
    assert _RememberingSource([fit.train], "train_dataloader").dataloader() == [fit.train]


class Refusing(BatchCheckingModule):
    def check_batch(self, batch: Any) -> None:
        raise ValueError("it is checked")


def test_attach_gives_batches_the_hooks_of_the_data_module_outside_of_a_fit():
    class Data(pl.LightningDataModule):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch + 1

    module, data, run = Refusing(), Data(), trainer()
    attach(run, module, data)
    assert batch_as_given(run, module, torch.zeros(1), checked=False) == 1
    assert data.trainer is module.trainer is run
    assert run.strategy.lightning_module is module
    with pytest.raises(ValueError, match="it is checked"):
        batch_as_given(run, module, torch.zeros(1))


def test_a_batch_as_given_has_gone_through_the_hooks_of_the_module(fit):
    assert all(batch.tolist() == [[1.0], [1.0]] for batch in fit.seen["given"])


@pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer`")
def test_a_batch_as_given_is_in_the_precision_of_the_trainer_and_on_the_device_asked_for():
    run, module = trainer(precision="64-true"), Checking()
    attach(run, module, Doubling())
    for checked in (True, False):
        batch = batch_as_given(run, module, torch.ones(1), checked, torch.device("meta"))
        assert (batch.dtype, batch.device.type) == (torch.float64, "meta")


class Checking(BatchCheckingModule, Tiny):
    """Tiny, whose hook adds 1, with a check."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Any] = []

    def check_batch(self, batch: Any) -> None:
        super().check_batch(batch)
        self.batches.append(batch.flatten().tolist() if batch.device.type == "cpu" else [])


class Doubling(pl.LightningDataModule):
    """A DataModule with the same hook, which takes the place of the module's."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return 2 * batch

    def train_dataloader(self) -> Any:
        return DataLoader(torch.full((2, 1), 3.0))


class Later(Doubling):
    """With hooks after that one."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device) + 1


class Last(Doubling):
    """With the last of the hooks."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch + 0.5


@pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer`")
@pytest.mark.parametrize(("kind", "seen"), [(Doubling, 6.0), (Later, 7.0), (Last, 6.5)])
def test_a_batch_checking_module_sees_batches_after_whatever_hooks_change_them(kind, seen):
    module = Checking()
    trainer(max_epochs=1).fit(module, datamodule=kind())
    assert module.batches == [[seen], [seen]]
    assert module.has_own_hooks()


@pytest.mark.filterwarnings("ignore:You have overridden `on_before_batch_transfer`")
def test_a_batch_checking_module_sees_each_batch_once_after_the_hook_of_either():
    with_hook, with_data = Checking(), Checking()
    trainer(max_epochs=1).fit(with_hook, DataLoader(torch.full((2, 1), 3.0)))
    trainer(max_epochs=1).fit(with_data, datamodule=Doubling())
    assert issubclass(Checking, BatchCheckingModule)
    assert with_hook.batches == [[4.0], [4.0]]
    assert with_data.batches == [[6.0], [6.0]]


def test_a_batch_that_has_nowhere_to_go_arrives_in_containers_of_its_own():
    class Emptying(Checking):
        """Takes its batches apart."""

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

        def check_batch(self, batch: Any) -> None:
            assert batch.keys() == {"x", "id"}

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            first, _ = batch.pop("id")
            assert first == "a"
            return super().training_step(batch.pop("x")["values"], batch_idx)

    stored = {"x": {"values": torch.full((2, 1), 3.0)}, "id": ["a", "b"]}
    trainer(max_epochs=2).fit(Emptying(), DataLoader([stored], batch_size=None))
    assert stored.keys() == {"x", "id"}
    assert is_plain_on_cpu(stored)
    arrived = in_new_containers(stored)
    assert arrived["x"] is not stored["x"]
    assert arrived["id"] is not stored["id"]
    assert arrived["x"]["values"] is stored["x"]["values"]
    assert not is_plain_on_cpu({"x": torch.ones(2, device="meta")})
    assert not is_plain_on_cpu({"x": object()})


def test_save_now_saves_between_the_callbacks_own_moments(fit):
    [path] = fit.seen["saved"]
    assert path.name == "now.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 1


def test_a_ranking_checkpoint_sees_the_values_and_is_told_of_what_it_has_saved(tmp_path):
    saved = []

    class Ranking(RankingCheckpoint):
        """Ranks by a value that nobody logs."""

        def candidates(self, trainer: pl.Trainer, values: dict[str, Any]) -> dict[str, Any]:
            own = torch.tensor(float(-values["epoch"]))
            return super().candidates(trainer, {**values, "own": own})

        def on_better(self, trainer: pl.Trainer) -> None:
            super().on_better(trainer)
            saved.append(Path(self.best_model_path).name)

    best = Ranking(tmp_path, "{epoch}", monitor="own", mode="max", save_top_k=2)
    run = trainer(max_epochs=3, callbacks=[best], enable_checkpointing=True)
    run.fit(Tiny(), DataLoader(torch.ones(2, 1)))
    assert saved == ["epoch=0.ckpt", "epoch=0.ckpt"]
    assert best.best_model_score == 0


def test_shared_log_keys_are_those_that_ranks_put_together():
    class Logging(BoringModel):
        def validation_step(self, batch, index):
            self.log("alone", 1.0)
            self.log("shared", 1.0)
            self.log("each step", 1.0, on_step=True, on_epoch=False)

        def on_validation_epoch_end(self):
            for key, metric in self.trainer._results.items():
                metric.meta.sync.should = "alone" not in key  # as sync_dist=True does on several ranks
            seen.append(shared_log_keys(self.trainer))

    seen = []
    trainer(max_epochs=1, num_sanity_val_steps=0).fit(Logging())
    assert seen == [["validation_step.shared"]]


def test_cluster_environment_is_what_the_trainer_was_given():
    environment = LightningEnvironment()
    assert cluster_environment(trainer(plugins=[environment])) is environment


def test_forget_restart_spares_the_loops_within():
    loop = trainer().fit_loop
    loop.epoch_progress.current.ready = 1  # else it takes the epoch for finished
    loop.restarting = True
    assert loop.restarting
    forget_restart(loop)
    assert not loop.restarting
    assert loop.epoch_loop.restarting
    assert loop.epoch_loop.val_loop.restarting


def test_restart_at_epoch_start_is_a_stage_that_the_fit_loop_knows():
    made = trainer()
    assert not made.fit_loop.restarted_on_epoch_start
    restart_at_epoch_start(made)
    assert made.fit_loop.restarted_on_epoch_start


def test_restart_within_validation_is_a_stage_that_the_validation_knows():
    made = trainer()
    assert not made.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation
    restart_within_validation(made)
    assert made.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", "sequential"])
def test_combination_of_is_the_mode(mode):
    assert combination_of(CombinedLoader([[1], [2]], mode)) == mode


def test_wrapped_samplers_lead_to_the_generator_of_a_sampler_that_ranks_share():
    generator = torch.Generator()
    sampler = RandomSampler(range(4), generator=generator)
    shared = DistributedSamplerWrapper(sampler, num_replicas=2, rank=0)
    assert wrapped_samplers(shared) == [shared.dataset]
    assert wrapped_samplers(shared.dataset) == [sampler]
    assert wrapped_samplers(sampler) == wrapped_samplers(3) == []
    loader = DataLoader(range(4), sampler=shared)
    assert held_generators(loader) == []
    assert held_generators(loader, wrapped_samplers) == [generator]


def test_is_local_tells_paths_from_urls(tmp_path):
    assert is_local(tmp_path)
    assert is_local("folder/last.ckpt")
    assert not is_local("memory://folder/last.ckpt")


def test_set_average_begins_at_the_weights_of_now():
    average, module = EMAWeightAveraging(), Tiny()
    set_average(average, module)  # there is none before the run
    average.setup(trainer(), module, "fit")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    set_average(average, module)
    for own, averaged in zip(module.parameters(), average._average_model.module.parameters(), strict=True):
        assert torch.equal(own, averaged)


def test_average_of_is_the_module_with_the_averages():
    average, module = EMAWeightAveraging(), Tiny()
    assert average_of(average) is None
    average.setup(trainer(), module, "fit")
    assert type(average_of(average)) is Tiny
    assert average_of(average) is not module


def test_trainer_of_is_none_before_the_first():
    module, run = Tiny(), trainer()
    assert trainer_of(module) is None
    module.trainer = run
    assert trainer_of(module) is run


def test_set_data_parallel_size_reaches_the_mesh(monkeypatch):
    asked = []
    strategy = ModelParallelStrategy()
    strategy._accelerator, strategy._lightning_module = trainer().accelerator, Tiny()
    strategy.parallel_devices = [torch.device("cpu")]
    strategy.cluster_environment = LightningEnvironment()
    monkeypatch.setattr(strategy, "_setup_distributed", lambda: None)
    monkeypatch.setattr(model_parallel, "_setup_device_mesh", lambda *sizes: asked.append(sizes[:2]))
    set_data_parallel_size(strategy, 6)
    strategy.setup_environment()
    assert asked == [(6, 1)]


@pytest.mark.parametrize("shares", [True, False])
def test_saves_shares_is_what_the_strategy_was_told(shares):
    assert saves_shares(ModelParallelStrategy(save_distributed_checkpoint=shares)) is shares


def test_ddp_options_and_ddp_hook_state_are_what_the_strategy_was_told():
    state = object()
    strategy = DDPStrategy(static_graph=True, ddp_comm_state=state)
    assert ddp_options(strategy) == {"static_graph": True}
    assert ddp_hook_state(strategy) is state
    assert ddp_hook_state(DDPStrategy()) is None
    assert ddp_options(SingleDeviceStrategy()) == {}
    assert ddp_hook_state(SingleDeviceStrategy()) is None


def test_start_method_is_what_the_strategy_was_told():
    assert start_method(DDPStrategy(start_method="fork")) == "fork"
    assert start_method(DDPStrategy()) == "popen"
    assert start_method(SingleDeviceStrategy()) is None


def test_skip_empty_hooks_leaves_those_that_do_something():
    called = []

    class Own(pl.Callback):
        def on_train_batch_end(self, *_: Any):
            called.append("own")

    class Task(BoringModel):
        def on_before_backward(self, *_: Any):
            called.append("task")

    own, task = Own(), Task()
    own.on_after_backward = lambda *_: called.append("given")
    skip_empty_hooks(own)
    skip_empty_hooks(task)
    assert own.on_before_zero_grad is None
    assert task.on_train_batch_start is None
    trainer(callbacks=[own], max_steps=1).fit(task)
    assert called == ["task", "given", "own"]


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_has_gradient_hooks_knows_both_kinds(register):
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert not has_gradient_hooks(parameter)
    getattr(parameter, register)(lambda gradient: None)
    assert has_gradient_hooks(parameter)


def test_write_count_changes_with_each_write_to_a_tensor():
    tensor = torch.zeros(2)
    before = write_count(tensor)
    tensor * 2
    assert write_count(tensor) == before
    tensor.view(1, 2)[0].add_(1)
    assert write_count(tensor) != before
    with torch.inference_mode():
        assert write_count(torch.zeros(2)) == 0


def test_holders_are_what_a_module_has_now():
    module = torch.nn.BatchNorm1d(2)
    module.add_module("child", torch.nn.Identity())
    parameters, buffers, children = holders(module)
    module.weight = torch.nn.Parameter(torch.zeros(2))
    assert parameters["weight"] is module.weight
    assert buffers["running_mean"] is module.running_mean
    assert children == {"child": module.child}


def test_is_restoring_until_all_of_a_checkpoint_is_restored(tmp_path):
    class Asked(pl.Callback):
        def __init__(self):
            self.answers = []

        def on_load_checkpoint(self, run, *_: Any):
            self.answers.append(is_restoring(run))

        def on_train_start(self, run, *_: Any):
            self.answers.append(is_restoring(run))

    run = trainer(max_epochs=1)
    run.fit(module := BoringModel())
    run.save_checkpoint(tmp_path / "a.ckpt")
    asked = Asked()
    trainer(max_epochs=2, callbacks=[asked]).fit(module, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert asked.answers == [True, False]


def test_is_compiled_is_a_module_that_was_given_compiled():
    module = BoringModel()
    assert not is_compiled(module)
    trainer(max_epochs=1, limit_train_batches=0).validate(torch.compile(module, backend="eager"), verbose=False)
    assert is_compiled(module)

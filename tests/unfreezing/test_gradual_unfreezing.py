import copy
import itertools
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

from hybrid_lightning import ConfigError, ExactResume, GradualUnfreezing, HybridClassifier, named_param_groups
from hybrid_lightning.distributed import ranks
from tests.tiny import Foreign, batches, hybrid, trainer

STEPS_PER_EPOCH = 5


class Recorder(pl.Callback):
    """What each batch saw: the step, the groups that trained, and which modules were in train mode."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, set[str], set[str]]] = []
        self.group_names: list[list[str]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        groups = optimizer.param_groups
        training = {g["name"] for g in groups if all(p.requires_grad for p in g["params"])}
        assert training == {g["name"] for g in groups if any(p.grad is not None for p in g["params"])}
        modes = {name for name, module in pl_module.named_modules() if module.training}
        self.seen.append((trainer.global_step, training, modes))
        self.group_names.append([g["name"] for g in groups])


def fitted(model: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> tuple[pl.Trainer, Recorder]:
    recorder = Recorder()
    runner = trainer(callbacks=[*callbacks, recorder], **options)
    runner.fit(model, batches(), batches(samples=12))
    return runner, recorder


@pytest.mark.parametrize("optimizer", ["AdamW", {"class_path": "SGD", "init_args": {"momentum": 0.9}}])
def test_a_frozen_part_is_bit_equal_after_a_fit(optimizer: Any) -> None:
    model = hybrid("never", optimizer=optimizer, weight_decay=0.3).build(next(iter(batches())))
    before = copy.deepcopy(model.built().parts["old"].state_dict())
    new = copy.deepcopy(model.built().parts["new"].state_dict())
    runner, _ = fitted(model, accumulate_grad_batches=2, gradient_clip_val=0.5)
    after = model.built().parts["old"].state_dict()
    assert before.keys() == after.keys()
    assert "first.1.running_mean" in after
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(torch.equal(new[name], value) for name, value in model.built().parts["new"].state_dict().items())
    frozen = {p for g in runner.optimizers[0].param_groups if g["part"] == "old" for p in g["params"]}
    assert frozen
    assert not frozen & runner.optimizers[0].state.keys()


def test_a_part_trains_from_the_step_of_its_duration_on() -> None:
    runner, recorder = fitted(hybrid("7 steps"))
    for step, training, _ in recorder.seen:
        assert any(name.startswith("old") for name in training) is (step >= 7)
    unfrozen = {g["name"]: g["unfrozen_at"] for g in runner.optimizers[0].param_groups}
    assert {step for name, step in unfrozen.items() if name.startswith("old")} == {7}
    assert {step for name, step in unfrozen.items() if not name.startswith("old")} == {0}


def test_stages_unfreeze_one_by_one_from_the_output_to_the_input() -> None:
    runner, recorder = fitted(hybrid({"start": "10%", "every": "1 epochs"}))
    total = 4 * STEPS_PER_EPOCH
    moments = {"old.third": total // 10, "old.second": total // 10 + 5, "old.first": total // 10 + 10}
    for step, training, _ in recorder.seen:
        for stage, moment in moments.items():
            assert (stage in training) is (step >= moment), (step, stage)
    unfrozen = {g["name"]: g["unfrozen_at"] for g in runner.optimizers[0].param_groups}
    assert {name: unfrozen[name] for name in moments} == moments


def test_groups_never_change_their_number_order_or_names() -> None:
    _, recorder = fitted(hybrid({"start": "2 steps", "every": "3 steps"}))
    assert all(names == recorder.group_names[0] for names in recorder.group_names)


def test_rates_keep_their_ratios_and_each_group_has_its_own_clock() -> None:
    rates = {"shape": "linear", "warm_up": "2 steps"}
    model = hybrid("8 steps", rates=rates)
    seen: dict[str, list[float]] = {}

    class Rates(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            for group in optimizer.param_groups:
                seen.setdefault(group["name"], []).append(group["lr"])

    fitted(model, Rates())
    by_hand = [(c + 1) / 3 if c < 2 else 1 - (c - 2) / (20 - 2) for c in range(20)]
    assert seen["new"] == pytest.approx([0.01 * factor for factor in by_hand])
    late = [(c + 1) / 3 if c < 2 else 1 - (c - 2) / (12 - 2) for c in range(12)]
    assert seen["old.first"] == pytest.approx([0.001 / 3] * 8 + [0.001 * factor for factor in late])


def test_modes_follow_the_part_through_validation_and_after_unfreezing() -> None:
    _, recorder = fitted(hybrid("7 steps"), val_check_interval=2)
    inside_old = {"network.parts.old.second.2", "network.parts.old.second.1", "network.parts.old.first.1"}
    for step, _, modes in recorder.seen:
        assert inside_old <= modes if step >= 7 else not inside_old & modes
        assert "network.parts.new" in modes


def test_a_module_that_arrives_in_eval_trains_once_it_is_unfrozen() -> None:
    model = hybrid("2 steps").build(next(iter(batches())))
    model.built().parts["old"].eval()
    _, recorder = fitted(model)
    assert "network.parts.old.second.2" in recorder.seen[-1][2]


def test_a_parameter_that_arrives_frozen_stays_fixed_and_is_said_to_never_train() -> None:
    tower = nn.Linear(4, 3)
    tower.bias.requires_grad_(False)
    model = hybrid()
    parts = {"old": {"module": tower, "input": "old"}}
    model = type(model)(num_classes=2, parts=parts)
    bias = tower.bias.clone()
    runner, _ = fitted(model)
    assert torch.equal(tower.bias, bias)
    assert [g["unfrozen_at"] for g in runner.optimizers[0].param_groups if g["fixed"]] == [None]


def test_after_a_fit_nothing_stays_frozen_and_a_second_fit_freezes_again() -> None:
    model = hybrid("never")
    fitted(model, max_epochs=1)
    assert all(p.requires_grad for p in model.parameters())
    before = copy.deepcopy(model.built().parts["old"].state_dict())
    runner, recorder = fitted(model, max_epochs=1)
    runner.validate(model, batches(), verbose=False)
    runner.fit_loop.epoch_progress.reset()
    assert all(torch.equal(before[n], v) for n, v in model.built().parts["old"].state_dict().items())
    assert all("/fixed" not in name for name in recorder.group_names[0])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the resumed run saves nothing
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_trains_what_an_uninterrupted_one_does(stop_after: int, tmp_path: Any) -> None:
    options: dict[str, Any] = {"dropout": 0.0, "rates": {"shape": "cosine", "warm_up": "2 steps"}}
    schedule = {"start": "3 steps", "every": "4 steps"}
    whole = hybrid(schedule, **options)
    fitted(whole)
    saved = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    fitted(hybrid(schedule, **options), saved, enable_checkpointing=True)
    resumed = hybrid(schedule, **options)
    recorder = Recorder()
    again = trainer(callbacks=[recorder])
    path = tmp_path / f"epoch={stop_after - 1}.ckpt"
    again.fit(resumed, batches(), batches(samples=12), ckpt_path=path, weights_only=True)
    assert recorder.seen[0][0] == stop_after * STEPS_PER_EPOCH
    other = resumed.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_it_works_in_somebody_elses_module(optimizer: Any) -> None:
    model = Foreign(optimizer)
    start = copy.deepcopy(model.state_dict())
    at_seven: dict[str, torch.Tensor] = {}

    class Snapshot(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 7:
                at_seven.update(copy.deepcopy(pl_module.state_dict()))

    runner = trainer(callbacks=[GradualUnfreezing({"backbone": {"start": "7 steps", "every": "5 steps"}}), Snapshot()])
    runner.fit(model, batches())
    frozen = [name for name in start if name.startswith("backbone")]
    assert frozen
    assert all(torch.equal(start[name], at_seven[name]) for name in frozen)
    assert not torch.equal(start["head.weight"], at_seven["head.weight"])
    assert not torch.equal(start["backbone.first.0.weight"], model.backbone.first[0].weight)


@pytest.mark.parametrize(
    ("unfreeze", "words"),
    [
        ({"backbonne": "3 steps"}, ["unknown part 'backbonne'", "Did you mean 'backbone'", "'head'"]),
        ({"backbone": "never", "head": "never"}, ["everything is frozen at step 0", "'backbone', 'head'"]),
        ({"backbone": "5 epochs"}, ["ends after 20 steps", "backbone.first at step 25"]),
        ({"backbone": "100%"}, ["ends after 20 steps"]),
    ],
)
def test_an_impossible_schedule_is_an_error_before_the_first_step(unfreeze: Any, words: list[str]) -> None:
    recorder = Recorder()
    runner = trainer(callbacks=[GradualUnfreezing(unfreeze), recorder])
    with pytest.raises(ConfigError) as caught:
        runner.fit(Foreign(), batches())
    assert all(word in str(caught.value) for word in words), caught.value
    assert not recorder.seen


def test_a_fast_development_run_does_not_trip_over_a_late_unfreezing() -> None:
    trainer(callbacks=[GradualUnfreezing({"backbone": "3 epochs"})], fast_dev_run=True).fit(Foreign(), batches())


def test_groups_without_parts_are_refused_with_what_to_write() -> None:
    class Plain(Foreign):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(ConfigError, match="named_param_groups"):
        trainer(callbacks=[GradualUnfreezing({"backbone": "3 steps"})]).fit(Plain(), batches())


def test_an_interrupted_fit_leaves_nothing_frozen() -> None:
    class Interrupt(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                raise RuntimeError("stop")

    model = Foreign()
    with pytest.raises(RuntimeError, match="stop"):
        trainer(callbacks=[GradualUnfreezing({"backbone": "9 steps"}), Interrupt()]).fit(model, batches())
    assert all(p.requires_grad for p in model.parameters())


def test_what_the_user_froze_and_did_not_name_stays_frozen() -> None:
    model = Foreign()
    model.backbone.requires_grad_(False)
    before = copy.deepcopy(model.backbone.first.state_dict())
    runner = trainer(callbacks=[GradualUnfreezing({"head": "always"})])
    runner.fit(model, batches())
    assert all(torch.equal(value, model.backbone.first.state_dict()[name]) for name, value in before.items())
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_a_part_that_arrives_all_frozen_and_is_to_unfreeze_is_an_error() -> None:
    tower = nn.Linear(4, 3).requires_grad_(False)
    parts = {"old": {"module": tower, "weights": "pretrained"}}
    with pytest.raises(ConfigError, match=r"model\.parts\.old\.unfreeze: all parameters arrive frozen"):
        HybridClassifier(num_classes=2, parts=parts).build(next(iter(batches())))
    parts["old"]["unfreeze"] = "never"
    HybridClassifier(num_classes=2, parts=parts).build(next(iter(batches())))


def test_a_second_model_in_the_same_trainer_follows_its_own_schedule() -> None:
    runner = trainer(max_epochs=1)
    runner.fit(hybrid("2 steps"), batches(), batches(samples=12))
    runner.fit_loop.epoch_progress.reset()
    second = hybrid("4 steps")
    runner = trainer(max_epochs=1, callbacks=runner.callbacks)
    runner.fit(second, batches(), batches(samples=12))
    assert {g["unfrozen_at"] for g in runner.optimizers[0].param_groups if g["part"] == "old"} == {4}


@pytest.mark.parametrize("strategy", ["deepspeed", "fsdp"])
def test_strategies_that_cannot_be_exact_are_refused_by_name(strategy: str, monkeypatch: Any) -> None:
    other = type(f"{strategy.title()}Strategy", (DDPStrategy,), {})
    runner = trainer(max_epochs=1)
    monkeypatch.setattr(type(runner), "strategy", property(lambda _: other()))
    with pytest.raises(ConfigError, match=rf"trainer\.strategy: .*{other.__name__}"):
        ranks.refuse_other_strategies(runner)


def test_communication_hooks_with_a_memory_are_refused_with_the_reason(monkeypatch: Any) -> None:
    state = PowerSGDState(None)
    runner = trainer(max_epochs=1)
    strategy = DDPStrategy(ddp_comm_state=state, ddp_comm_hook=lambda *_: None)
    monkeypatch.setattr(type(runner), "strategy", property(lambda _: strategy))
    with pytest.raises(ConfigError, match=r"PowerSGDState keeps an error per bucket.*fp16_compress_hook"):
        ranks.refuse_other_strategies(runner)


def test_a_static_graph_with_accumulation_is_refused_before_torch_fails_on_it(monkeypatch: Any) -> None:
    runner = trainer(max_epochs=1, accumulate_grad_batches=2)
    monkeypatch.setattr(type(runner), "strategy", property(lambda _: DDPStrategy(static_graph=True)))
    with pytest.raises(ConfigError, match="cannot accumulate gradients with static_graph"):
        ranks.refuse_other_strategies(runner)


def test_a_checksum_sees_every_bit_and_every_place() -> None:
    values = torch.randn(5)
    other, swapped = values.clone(), values.flip(0)
    other[3] = torch.nextafter(other[3], torch.tensor(10.0))
    sums = ranks.checksums([nn.Parameter(t) for t in (values, values.clone(), other, swapped, values.double())])
    assert sums[0] == sums[1]
    assert len(set(sums.tolist())) == 4


class Judged(Foreign):
    """Validates to given values, one after the other, and keeps what trained and which weights it had."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values, self.validated, self.seen = values, 0, list[tuple[int, set[str]]]()
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        groups = self.trainer.optimizers[0].param_groups
        self.seen.append((self.trainer.global_step, {g["name"] for g in groups if g["params"][0].requires_grad}))

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        if batch_idx == 0 and not self.trainer.sanity_checking:
            self.weights.append(copy.deepcopy(self.state_dict()))
            self.validated += 1
        self.log("val/loss", self.values[max(self.validated, 1) - 1])

    def first_step(self, stage: str) -> int | None:
        return next((step for step, training in self.seen if f"backbone.{stage}" in training), None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["validated"] = self.validated

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.validated = checkpoint["validated"]


PLATEAU = {"plateau": "val/loss", "patience": "2 validations"}


def judged(values: list[float], unfreeze: Any, *callbacks: pl.Callback, **options: Any) -> Judged:
    model = Judged(values)
    path = options.pop("ckpt_path", None)
    runner = trainer(**{"max_epochs": len(values), "callbacks": [GradualUnfreezing(unfreeze), *callbacks], **options})
    runner.fit(model, batches(), batches(samples=12), ckpt_path=path, weights_only=True)
    return model


def test_a_stage_trains_from_the_step_after_its_metric_has_stopped_getting_better() -> None:
    model = judged([3.0, 2.0, 2.5, 2.0, 1.0], {"backbone": PLATEAU})
    assert [model.first_step(stage) for stage in ("first", "second", "third")] == [20] * 3
    groups = model.trainer.optimizers[0].param_groups
    assert {g["unfrozen_at"] for g in groups if g["part"] == "backbone"} == {20}


def test_every_next_stage_waits_for_a_plateau_of_its_own() -> None:
    model = judged([3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 1.0], {"backbone": {"start": "2 steps", "every": PLATEAU}})
    assert [model.first_step(stage) for stage in ("third", "second", "first")] == [2, 15, 30]


def test_triggers_of_all_kinds_mix_per_stage_and_a_metric_that_never_rests_is_named(caplog: Any) -> None:
    stages = {"third": "10%", "second": "7 steps", "first": {**PLATEAU, "patience": "1 validations"}}
    model = judged([3.0, 2.0, 1.0], {"backbone": {"stages": stages}})
    assert [model.first_step(stage) for stage in ("third", "second", "first")] == [2, 7, None]
    assert "backbone.first has not been unfrozen: it waited for val/loss no better for 1 validation" in caplog.text


def test_a_plateau_in_the_middle_of_an_accumulation_waits_for_the_next_step() -> None:
    options = {"val_check_interval": 1, "accumulate_grad_batches": 2, "max_epochs": 1}
    model = judged([3.0, 3.0, 3.0, 3.0, 3.0], {"backbone": PLATEAU}, **options)
    # the third batch is the first half of step 1, so that step is still made without the backbone
    assert [step for step, training in model.seen if "backbone.first" in training] == [2]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("stop_after", [1, 3, 4, 5, 6])
def test_the_decisions_of_metrics_survive_a_restart(stop_after: int, tmp_path: Any) -> None:
    values = [3.0, 2.0, 2.5, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    unfreeze = {"backbone": {"start": PLATEAU, "every": {**PLATEAU, "patience": "1 validations"}}}
    save = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = judged(values, unfreeze, save, enable_checkpointing=True)
    resumed = judged(values, unfreeze, ckpt_path=tmp_path / f"epoch={stop_after - 1}.ckpt")
    assert whole.seen[stop_after * STEPS_PER_EPOCH :] == resumed.seen
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert [whole.first_step(stage) for stage in ("third", "second", "first")] == [20, 30, 40]


def test_a_part_freezes_again_and_stays_bit_equal_from_then_on() -> None:
    model = judged([1.0] * 4, {"backbone": {"start": "5 steps", "freeze": {"start": "50%", "every": "1 epochs"}}})
    for stage, stop in (("first", 10), ("second", 15), ("third", 20)):
        trained = [step for step, training in model.seen if f"backbone.{stage}" in training]
        assert trained == list(range(5, stop))
    second, third = ({n: v for n, v in weights.items() if "first" in n} for weights in model.weights[1:3])
    assert all(torch.equal(value, third[name]) for name, value in second.items())
    assert {g["unfrozen_at"] for g in model.trainer.optimizers[0].param_groups if g["part"] == "backbone"} == {5}


def test_the_best_weights_are_restored_before_an_unfreezing() -> None:
    class Start(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 20:
                self.weights = copy.deepcopy(pl_module.state_dict())

    for unfreeze in ({"start": PLATEAU, "restore_best": True}, {"start": "20 steps", "restore_best": "val/loss"}):
        start = Start()
        model = judged([3.0, 2.0, 2.5, 2.0, 1.0], {"backbone": unfreeze}, start)
        assert model.first_step("first") == 20
        assert all(torch.equal(value, model.weights[1][name]) for name, value in start.weights.items())
        assert not torch.equal(start.weights["head.weight"], model.weights[3]["head.weight"])


@pytest.mark.parametrize(("restart", "epochs"), [(False, 4), (True, 5)])
def test_the_patience_of_early_stopping_can_start_anew_at_an_unfreezing(restart: bool, epochs: int) -> None:
    model = Judged([1.0] * 9)
    callbacks = [
        GradualUnfreezing({"backbone": "11 steps"}, restart_early_stopping=restart),
        pl.callbacks.EarlyStopping("val/loss", patience=3),
    ]
    runner = trainer(callbacks=callbacks, max_epochs=9)
    runner.fit(model, batches(), batches(samples=12))
    assert runner.current_epoch == epochs


def test_waiting_for_a_metric_that_is_not_logged_or_without_validation_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'val/los'. Did you mean 'val/loss'"):
        judged([1.0, 1.0], {"backbone": {**PLATEAU, "plateau": "val/los", "mode": "min"}})
    runner = trainer(callbacks=[GradualUnfreezing({"backbone": PLATEAU})])
    with pytest.raises(ConfigError, match="'backbone' would wait for a metric, but nothing is validated"):
        runner.fit(Foreign(), batches())


@pytest.mark.parametrize(
    ("unfreeze", "message"),
    [
        ({"backbone": {"start": "8 steps", "freeze": "5 steps"}}, "frozen again at step 5, before it trains at step 8"),
        ({p: {"freeze": "50%"} for p in ("backbone", "head")}, "from step 10 on nothing trains"),
        ({"backbone": {"stages": {"third": "1%"}}}, r"'first', 'second' without a schedule"),
    ],
)
def test_an_impossible_freezing_is_an_error_before_the_first_step(unfreeze: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(callbacks=[GradualUnfreezing(unfreeze)]).fit(Foreign(), batches())


@pytest.mark.parametrize(("mode", "moves"), [("frozen", []), (None, [2, 3]), ("train", [0, 1, 2, 3])])
def test_statistics_move_when_the_mode_of_the_part_says_so(mode: str | None, moves: list[int]) -> None:
    model = Judged([1.0] * 5)
    callback = GradualUnfreezing({"backbone": "3 epochs"}, batch_norm={"backbone": mode} if mode else None)
    trainer(callbacks=[callback], max_epochs=5).fit(model, batches(), batches(samples=12))
    means = [weights["backbone.first.1.running_mean"] for weights in model.weights]
    assert [i for i, (a, b) in enumerate(itertools.pairwise(means)) if not torch.equal(a, b)] == moves


def test_parameters_that_the_user_froze_in_an_unnamed_part_stay_frozen() -> None:
    model = Foreign()
    model.backbone.first.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    trainer(callbacks=[GradualUnfreezing({"head": "always"})]).fit(model, batches())
    after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in ("backbone.first.0.weight", "backbone.first.0.bias"))
    assert not torch.equal(before["backbone.third.weight"], after["backbone.third.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_what_is_frozen_today_counts_and_not_what_was_frozen_when_the_checkpoint_was_saved(tmp_path: Any) -> None:
    save = pl.callbacks.ModelCheckpoint(tmp_path, filename="x", save_on_train_epoch_end=True)
    frozen = Foreign()
    frozen.backbone.requires_grad_(False)
    callbacks = [GradualUnfreezing({"head": "always"}), save]
    trainer(callbacks=callbacks, enable_checkpointing=True, max_epochs=1).fit(frozen, batches())
    runner = trainer(callbacks=[GradualUnfreezing({"backbone": "6 steps"})], max_epochs=2)
    runner.fit(Foreign(), batches(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert {(g["fixed"], g["unfrozen_at"]) for g in runner.optimizers[0].param_groups} == {(False, 0), (False, 6)}


def test_windows_in_an_older_checkpoint_are_ignored() -> None:
    callback = GradualUnfreezing({"backbone": "3 steps"})
    callback.load_state_dict({"recorded": {"backbone.first": 4}, "holds": [[3, 9]], "training": ["head"]})
    assert callback.decided_steps == {"backbone.first": 4}
    assert callback.state_dict().keys() == {"recorded", "watches", "best", "training"}


def test_a_former_name_of_a_mode_is_refused_with_the_name_of_today() -> None:
    with pytest.raises(ConfigError, match=r"^batch_norm\.backbone: mode 'eval' is called 'frozen' now"):
        GradualUnfreezing({}).configure({}, {"backbone": "eval"})


def test_a_plateau_needs_no_sanity_check() -> None:
    model = judged([3.0, 3.0, 3.0], {"backbone": {**PLATEAU, "patience": "1 validations"}}, num_sanity_val_steps=0)
    assert model.first_step("first") == 10


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("batch", range(8))
def test_metrics_decide_the_same_wherever_a_fit_was_cut(batch: int, tmp_path: Any) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
            path = tmp_path / f"{trainer.fit_loop.total_batch_idx}.ckpt"
            if not path.exists():
                trainer.save_checkpoint(path)

    values = [4.0, 3.0, 3.5, 2.0, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    unfreeze = {"backbone": {"start": {**PLATEAU, "patience": "1 validations"}, "restore_best": True}}
    options = {"val_check_interval": 1, "accumulate_grad_batches": 2, "max_epochs": 2}
    whole = judged(values, unfreeze, ExactResume(), Save(), **options)
    again = judged(values, unfreeze, ExactResume(), ckpt_path=tmp_path / f"{batch}.ckpt", **options)
    assert whole.seen[batch + 1 :] == again.seen
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_patience_starts_anew_when_another_metric_is_waited_for(tmp_path: Any) -> None:
    save = pl.callbacks.ModelCheckpoint(tmp_path, filename="x", save_on_train_epoch_end=True)
    judged([9.0], {"backbone": {**PLATEAU, "mode": "max"}}, save, enable_checkpointing=True)
    other = {"backbone": {**PLATEAU, "patience": "1 validations"}}
    model = judged([9.0, 10.0, 9.5, 9.0], other, ckpt_path=tmp_path / "x.ckpt")
    assert model.first_step("first") is None


def test_a_stage_of_its_own_schedule_can_restore_the_best_weights_too() -> None:
    class Start(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 20:
                self.weights = copy.deepcopy(pl_module.state_dict())

    stages = {"first": {"start": "20 steps", "restore_best": "val/loss"}, "*": "always"}
    model = judged([3.0, 2.0, 2.5, 2.0, 1.0], {"backbone": {"stages": stages}}, start := Start())
    assert all(torch.equal(value, model.weights[1][name]) for name, value in start.weights.items())


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (
            [GradualUnfreezing({}, batch_norm={"bakbone": "frozen"})],
            r"batch_norm: unknown part 'bakbone'\. Did you mean 'backbone'",
        ),
        (
            [GradualUnfreezing({"backbone": "2 epochs"}), pl.callbacks.GradientAccumulationScheduler({0: 4})],
            r"with GradientAccumulationScheduler the number of steps in an epoch changes",
        ),
    ],
)
def test_what_would_go_wrong_silently_is_refused_at_the_start(callbacks: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(callbacks=callbacks).fit(Foreign(), batches())


def test_a_scheduler_that_gives_all_groups_one_rate_is_refused_with_the_alternative() -> None:
    class Flat(Foreign):
        def configure_optimizers(self) -> Any:
            parts, rates = {"backbone": "backbone", "head": "head"}, {"backbone": {"lr_scale": 0.1}}
            optimizer = torch.optim.SGD(named_param_groups(self, parts, lr=0.01, rates=rates), momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=20)]

    with pytest.raises(ConfigError, match=r"all groups at one rate.*GroupScheduler"):
        trainer(callbacks=[GradualUnfreezing({"backbone": "3 steps"})]).fit(Flat(), batches())

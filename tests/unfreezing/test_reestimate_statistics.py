import copy
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from hybrid_lightning import ConfigError, GradualUnfreezing, HybridClassifier, ReestimateStatistics
from tests.tiny import Foreign, batches, hybrid, trainer


class Takes(Foreign):
    """A module whose forward takes a batch, as ours does."""

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.head(self.backbone(batch["old"]))

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.log("val/loss", self(batch).mean())


def by_hand(model: Takes) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of the batches' means and variances of what the first normalization reads, with the weights as they are."""
    read = next(iter(batches(batch_size=40)))["old"]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    outputs = [model.backbone.first[0](read[rows]).detach() for rows in order.split(8)]
    return torch.stack([o.mean(0) for o in outputs]).mean(0), torch.stack([o.var(0) for o in outputs]).mean(0)


@pytest.mark.parametrize("validates", [True, False])
def test_statistics_are_those_of_the_final_weights_however_small_the_momentum(validates: bool) -> None:
    gaps = []
    for callbacks in ([], [ReestimateStatistics(["backbone"])]):
        model = Takes()
        model.backbone.first[1].momentum = 0.01
        trainer(callbacks=callbacks, max_epochs=2).fit(model, batches(), batches(samples=12) if validates else None)
        mean, variance = by_hand(model)
        norm = model.backbone.first[1]
        gaps.append(float((norm.running_mean - mean).abs().max() + (norm.running_var - variance).abs().max()))
        assert norm.momentum == 0.01
    assert gaps[0] > 1
    assert gaps[1] < 1e-5


@pytest.mark.parametrize("validates", [True, False])
def test_batches_are_those_of_an_evaluation_whether_or_not_one_follows(validates: bool) -> None:
    class Augmenting(Takes):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return {**batch, "old": batch["old"] + 10.0} if self.trainer.training else batch

    model = Augmenting()
    run = trainer(callbacks=[ReestimateStatistics(["backbone"])], max_epochs=1)
    run.fit(model, batches(), batches(samples=12) if validates else None)
    mean, _ = by_hand(model)
    assert (model.backbone.first[1].running_mean - mean).abs().max() < 1e-5


def test_training_is_the_same_and_frozen_stages_keep_their_statistics() -> None:
    models = []
    for callbacks in ([], [ReestimateStatistics()]):
        model = Takes()
        before = copy.deepcopy(model.state_dict())
        unfreezing = GradualUnfreezing({"backbone": {"stages": {"first": "never", "*": "always"}}})
        trainer(callbacks=[unfreezing, *callbacks]).fit(model, batches(), batches(samples=12))
        after = model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items() if "first" in name)
        assert not torch.equal(before["backbone.second.1.running_mean"], after["backbone.second.1.running_mean"])
        models.append(model)
    plain, estimated = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(value, estimated[name]) for name, value in plain.items())


def test_a_part_that_says_stats_is_estimated_without_further_words() -> None:
    plain = hybrid("always")
    facts = {name: {**part.plain(), "batch_norm": "recalibrate"} for name, part in plain.parts.items() if name == "old"}
    model = HybridClassifier(num_classes=2, parts=facts)
    runner = trainer(max_epochs=1)
    runner.fit(model, batches(), batches(samples=12))
    assert [c.parts for c in runner.callbacks if isinstance(c, ReestimateStatistics)] == [["old"]]  # type: ignore[attr-defined]
    tower: Any = model.built().parts["old"]
    assert tower.first[1].num_batches_tracked == 5, "not the steps of the run: one pass over the training data"


def test_a_part_without_parameters_may_have_a_mode_like_the_others() -> None:
    parts = {"old": {"module": "MLP"}, "new": {"module": torch.nn.Identity}}
    model = HybridClassifier(num_classes=2, parts=parts, untrained={"batch_norm": "recalibrate"})
    trainer(max_epochs=1).fit(model, batches(), batches(samples=12))


def test_what_cannot_be_estimated_is_an_error_before_the_first_step() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(batches(batch_size=8))

    runner = trainer(callbacks=[ReestimateStatistics()])
    with pytest.raises(ConfigError, match="only from one DataLoader with a batch size"):
        runner.fit(Takes(), DataLoader(Stream(), batch_size=None))
    with pytest.raises(ConfigError, match=r"unknown part 'backbonne'\. Did you mean 'backbone'"):
        trainer(callbacks=[ReestimateStatistics(["backbonne"])]).fit(Takes(), batches())
    with pytest.raises(ConfigError, match=r"^ReestimateStatistics\.batches: 0 is not a number at least 1"):
        ReestimateStatistics(batches=0)


def test_validation_alone_estimates_nothing() -> None:
    model = Takes()
    before = copy.deepcopy(model.state_dict())
    trainer(callbacks=[ReestimateStatistics()]).validate(model, batches(), verbose=False)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())

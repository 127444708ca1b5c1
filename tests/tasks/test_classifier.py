import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from hybrid_lightning import ConfigError, FocalLoss, HybridTask
from tests.small import changed, classifier, command, loader, table, trainer

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0], [0.3, 0.2, 0.1], [-1.0, 3.0, 1.0]])
TARGET = torch.tensor([0, 2, 1, 1])


def test_class_weights_weigh_the_samples_of_a_class():
    weights = [1.0, 2.0, 4.0]
    losses = torch.stack([-row.log_softmax(0)[label] for row, label in zip(LOGITS, TARGET, strict=True)])
    of_samples = torch.tensor([weights[label] for label in TARGET])
    expected = (losses * of_samples).sum() / of_samples.sum()
    torch.testing.assert_close(classifier(class_weights=weights).loss(LOGITS, TARGET), expected)


def test_label_smoothing_spreads_a_share_of_the_target_evenly():
    soft = functional.one_hot(TARGET, 3) * 0.9 + 0.1 / 3
    expected = -(soft * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(classifier(label_smoothing=0.1).loss(LOGITS, TARGET), expected)


@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_binary_output_is_two_classes_whose_first_logit_is_zero(weights, smoothing):
    output, target = LOGITS[:, :1], torch.tensor([1, 0, 0, 1])
    one = classifier(num_classes=2, kind="binary", class_weights=weights)
    two = classifier(num_classes=2, class_weights=weights)
    logits = torch.cat([torch.zeros_like(output), output], dim=1)
    torch.testing.assert_close(one.loss(output, target), two.loss(logits, target))
    torch.testing.assert_close(one.predictions(output), two.predictions(logits))
    assert one.objective.outputs == 1
    soft = target * (1 - smoothing) + smoothing / 2
    smooth = classifier(num_classes=2, kind="binary", label_smoothing=smoothing)
    p = output[:, 0].sigmoid()
    torch.testing.assert_close(smooth.loss(output, target), -(soft * p.log() + (1 - soft) * (1 - p).log()).mean())


def test_multilabel_weighs_the_positives_of_each_label():
    target, weights = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]]), torch.tensor([1.0, 2.0, 3.0])
    p = LOGITS.sigmoid()
    expected = -(weights * target * p.log() + (1 - target) * (1 - p).log()).mean()
    model = classifier(kind="multilabel", class_weights=weights.tolist())
    torch.testing.assert_close(model.loss(LOGITS, target), expected)
    torch.testing.assert_close(model.predictions(LOGITS), p)


def test_multiclass_predictions_are_probabilities():
    torch.testing.assert_close(classifier().predictions(LOGITS).sum(1), torch.ones(4))


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, torch.arange(27) % 3),
        ({"num_classes": 2, "kind": "binary"}, torch.arange(27) % 2),
        ({"num_classes": 2, "kind": "binary"}, (torch.arange(27) % 2).bool()),
        ({"kind": "multilabel"}, torch.randint(2, (27, 3), generator=torch.Generator().manual_seed(0))),
        ({"kind": "multilabel"}, torch.randint(2, (27, 3), generator=torch.Generator().manual_seed(0)).float()),
        ({}, (torch.arange(27) % 3).to(torch.uint8)),
    ],
)  # fmt: skip
def test_each_kind_trains_and_tests(options, target):
    data = loader({"x": table(), "target": target})
    run = trainer()
    model = classifier(**options)
    run.fit(model, data, data)
    [logged] = run.test(model, data, verbose=False)
    assert {"test/loss", "test/accuracy", "test/macro_f1", "test/auroc"} <= logged.keys()
    assert ("test/calibration_error" in logged) == (options.get("kind") != "multilabel")


def test_logged_metrics_are_those_of_all_samples():
    target = torch.arange(27) % 3
    data, model, run = loader({"x": table(), "target": target}), classifier(class_weights=[1, 2, 3]), trainer()
    run.fit(model, data)
    [logged] = run.test(model, data, verbose=False)
    with torch.no_grad():
        output = model.eval()({"x": table()})
    assert logged["test/accuracy"] == pytest.approx(float((output.argmax(1) == target).float().mean()))
    # exact over all samples, although each batch divides by its own sum of class weights
    assert logged["test/loss"] == pytest.approx(float(model.loss(output, target)), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_classes": None}, r"model\.num_classes: it must be given, such as 3"),
        ({"num_classes": 1}, r"model\.num_classes: 1 is not possible for a multiclass"),
        ({"num_classes": 3, "kind": "binary"}, r"model\.num_classes: 3 is not possible for a binary"),
        ({"num_classes": 1, "kind": "multilabel"}, "'kind: binary' with 2 classes"),
        ({"kind": "multi"}, r"model\.kind: unknown kind 'multi'. Did you mean 'multilabel'"),
        ({"class_weights": [1.0]}, r"1 weights are given for 3 classes"),
        ({"class_weights": [1.0, -1.0, 1.0]}, r"model\.class_weights: -1\.0"),
        ({"label_smoothing": 1.0}, r"model\.label_smoothing: 1\.0 is not in \[0, 1\)"),
    ],
)
def test_an_impossible_argument_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        classifier(**options)


@pytest.mark.parametrize(
    ("options", "target", "match"),
    [
        ({}, torch.tensor([0, 3]), "labels run from 0 to 3, but the model allows 0 to 2"),
        ({}, torch.tensor([-1, 2]), "labels run from -1 to 2"),
        ({}, torch.tensor([0.0, 1.0]), r"labels are torch\.float32"),
        ({}, torch.tensor([[0], [1]]), r"the shape is \(2, 1\); a multiclass target is \(B,\)"),
        ({"num_classes": 2, "kind": "binary"}, torch.tensor([0, 2]), "allows 0 to 1"),
        ({"kind": "multilabel"}, torch.tensor([0, 1]), r"a multilabel target is \(B, 3\)"),
        ({"kind": "multilabel"}, torch.tensor([[0, 1]]), r"a multilabel target is \(B, 3\)"),
        ({"kind": "multilabel"}, torch.tensor([[0, 1, 2]]), "holds 0 and 1 only, not values such as 2"),
        ({"kind": "multilabel"}, torch.tensor([[0, 0.5, 0]]), "holds 0 and 1 only, not values such as 0.5"),
    ],
)
def test_a_target_that_does_not_fit_is_told(options, target, match):
    with pytest.raises(ConfigError, match=match):
        classifier(**options).objective.check_target(target)


# Losses by name, and balanced weights

COUNTS = torch.tensor([0] * 18 + [1] * 6 + [2] * 3)


def silent(target: torch.Tensor) -> DataLoader:
    """Data that do not show their labels."""
    return DataLoader([{"x": x, "target": label} for x, label in zip(table(), target, strict=True)], batch_size=9)


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, torch.arange(27) % 3),
        ({"num_classes": 2, "kind": "binary"}, torch.arange(27) % 2),
        ({"kind": "multilabel"}, torch.randint(2, (27, 3), generator=torch.Generator().manual_seed(0))),
    ],
)
@pytest.mark.parametrize("weights", [None, "balanced"])
def test_each_kind_trains_with_focal_loss_and_its_checkpoint_rebuilds_it(options, target, weights, tmp_path):
    data, run = loader({"x": table(), "target": target}), trainer()
    spec = {"class_path": "hybrid_lightning.FocalLoss", "init_args": {"gamma": 1.5}}
    model = classifier(loss_function=spec, class_weights=weights, **options)
    run.fit(model, data, data)
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = HybridTask.load_from_checkpoint(tmp_path / "x.ckpt")
    with torch.no_grad():
        outputs = model.eval()({"x": table()})
    shaped = outputs[:, 0] if options.get("kind") == "binary" else outputs
    counted = model.saved_settings()["class_weights"]
    expected = FocalLoss(1.5, counted)(shaped, target)
    assert (counted is None) == (weights is None)
    torch.testing.assert_close(again.loss(outputs, target), expected)
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_a_loss_of_torch_is_named_by_its_path():
    model = classifier(loss_function="torch.nn.MultiMarginLoss")
    torch.testing.assert_close(model.loss(LOGITS, TARGET), functional.multi_margin_loss(LOGITS, TARGET))
    smooth = classifier(loss_function="torch.nn.CrossEntropyLoss", label_smoothing=0.1)
    torch.testing.assert_close(smooth.loss(LOGITS, TARGET), classifier(label_smoothing=0.1).loss(LOGITS, TARGET))


class Summed(nn.Module):
    def forward(self, outputs, target):
        return functional.cross_entropy(outputs, target, reduction="none")


def test_a_loss_that_is_no_mean_over_samples_is_told():
    with pytest.raises(ConfigError, match=r"model\.loss_function: Summed does not return one number"):
        classifier(loss_function=Summed).loss(LOGITS, TARGET)


def test_a_wrong_loss_is_told_before_the_first_step():
    data = loader({"x": table(), "target": torch.arange(27) % 3})
    with pytest.raises(ConfigError, match="mean 'gamma'"):
        trainer().fit(classifier(loss_function={"class_path": "FocalLoss", "init_args": {"gama": 1}}), data)
    with pytest.raises(ConfigError, match=r"model\.class_weights: torch\.nn\.MultiMarginLoss takes no argument"):
        trainer().fit(classifier(loss_function="torch.nn.MultiMarginLoss", class_weights="balanced"), data)


def test_a_loss_of_somebody_elses_is_built_from_a_file_only_if_it_is_trusted(tmp_path):
    run = trainer()
    run.fit(classifier(loss_function=f"{__name__}.Mean"), loader({"x": table(), "target": torch.arange(27) % 3}))
    run.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=r"neither a loss of ours .* trust=\['tests'\]"):
        HybridTask.load_from_checkpoint(tmp_path / "x.ckpt")
    assert isinstance(HybridTask.load_from_checkpoint(tmp_path / "x.ckpt", trust="tests").objective.loss_module, Mean)


class Mean(nn.CrossEntropyLoss):
    """Somebody's own."""


@pytest.mark.parametrize(
    ("options", "target", "expected"),
    [
        ({}, COUNTS, [27 / (3 * 18), 27 / (3 * 6), 27 / (3 * 3)]),
        ({}, COUNTS.clamp(max=1), [27 / (3 * 18), 27 / (3 * 9), 27 / 3]),  # no sample counts as one
        ({"num_classes": 2, "kind": "binary"}, COUNTS.clamp(max=1), [27 / (2 * 18), 27 / (2 * 9)]),
        ({"kind": "multilabel"}, functional.one_hot(COUNTS, 3), [9 / 18, 21 / 6, 24 / 3]),
    ],
)
def test_balanced_weights_are_counted_before_the_first_loss_and_kept(options, target, expected, tmp_path):
    data, run = loader({"x": table(), "target": target}), trainer()
    model = classifier(class_weights="balanced", **options)
    run.fit(model, data, data)
    assert model.objective.class_weights.tolist() == pytest.approx(expected)
    fixed = classifier(class_weights=expected, **options)
    with torch.no_grad():
        outputs = model.eval()({"x": table()})
    torch.testing.assert_close(model.loss(outputs, target), fixed.loss(outputs, target))
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(float(fixed.loss(outputs, target)), rel=1e-5)
    run.save_checkpoint(tmp_path / "x.ckpt")
    assert HybridTask.load_from_checkpoint(tmp_path / "x.ckpt").saved_settings()["class_weights"] == pytest.approx(
        expected
    )


def test_a_resumed_fit_and_a_test_keep_the_weights_that_were_counted(tmp_path):
    run = trainer()
    run.fit(classifier(class_weights="balanced"), loader({"x": table(), "target": COUNTS}))
    run.save_checkpoint(tmp_path / "x.ckpt")
    expected = [0.5, 1.5, 3.0]
    other = loader({"x": table(), "target": torch.arange(27) % 3})
    for verb in ("fit", "test"):
        model = classifier(class_weights="balanced")
        getattr(trainer(max_epochs=2), verb)(model, other, ckpt_path=tmp_path / "x.ckpt")
        assert model.objective.class_weights.tolist() == pytest.approx(expected)


def test_a_fit_that_asks_for_balance_anew_counts(folder):
    run = trainer()
    run.fit(classifier(), loader({"x": table(), "target": COUNTS}))
    run.save_checkpoint("x.ckpt")
    model = classifier(class_weights="balanced")
    trainer(max_epochs=2).fit(model, loader({"x": table(), "target": COUNTS}), ckpt_path="x.ckpt")
    assert model.objective.class_weights.tolist() == pytest.approx([0.5, 1.5, 3.0])


def test_balance_without_labels_to_count_is_told():
    with pytest.raises(ConfigError, match=r"model\.class_weights: 'balanced' .* no tensor 'targets'"):
        trainer().fit(classifier(class_weights="balanced"), silent(COUNTS))
    with pytest.raises(ConfigError, match="counted by a run"):
        classifier(class_weights="balanced").loss(LOGITS, TARGET)
    with pytest.raises(ConfigError, match="'even' is neither 'balanced' nor a list"):
        classifier(class_weights="even")


def test_the_command_line_reads_a_loss_and_balance(folder):
    loss = {"class_path": "FocalLoss", "init_args": {"gamma": 1e-1}}
    config = changed({"init.loss_function": loss, "init.class_weights": "balanced"})
    assert command("fit", config=config) == 0
    assert command("test", "--ckpt_path", "best", config=config) == 0
    assert command("fit", "--model.loss_function", "FocalLoss", "--model.class_weights", "[1, 2, 3]") == 0
    model = HybridTask.load_from_checkpoint(next(folder.rglob("version_2/checkpoints/last.ckpt")))
    assert model.saved_settings()["class_weights"] == [1, 2, 3]
    assert model.objective.loss_module.gamma == 2


@pytest.mark.parametrize(
    ("options", "kind", "names", "said"),
    [
        ({}, "regression", ["price"], "'price' is a quantity.* kind: multiclass.* HybridRegressor"),
        ({}, "multilabel", ["a", "b", "c"], "it is multilabel, and model.kind is multiclass"),
        ({"kind": "multilabel"}, "multiclass", ["a", "b", "c"], "it is multiclass, and model.kind is multilabel"),
        ({}, "multiclass", ["a", "b"], "it has 2 classes, 'a', 'b', and model.num_classes is 3"),
        ({}, "multiclass", ["a", "b", "c", "d"], "num_classes: 4"),
        ({"num_classes": 2, "kind": "binary"}, "multiclass", ["a", "b", "c"], "num_classes: 3"),
        ({"kind": "multilabel"}, "multilabel", ["a"], "it has 1 labels"),
    ],
)
def test_data_of_another_kind_are_refused(options, kind, names, said):
    with pytest.raises(ConfigError, match=said):
        classifier(**options).objective.check_kind(kind, names)


def test_two_classes_are_learned_by_both_kinds():
    classifier(num_classes=2).objective.check_kind("binary", ["a", "b"])
    classifier(num_classes=2, kind="binary").objective.check_kind("multiclass", ["a", "b"])
    classifier(kind="multilabel").objective.check_kind("multilabel", ["a", "b", "c"])

import pytest
import torch
from torch.nn import functional

from hybrid_lightning import ConfigError
from tests.small import classifier, loader, table, trainer

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
    assert one.outputs == 1
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
        classifier(**options).check_target(target, "data: target")

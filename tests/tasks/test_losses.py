import pytest
import torch
from torch import nn
from torch.nn import functional

from hybrid_lightning import ConfigError, FocalLoss
from hybrid_lightning.importing import ClassSpec
from hybrid_lightning.tasks.losses import make_loss, parse_loss

OUTPUTS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0], [0.3, 0.2, 0.1], [-1.0, 3.0, 1.0]])
TARGET = torch.tensor([0, 2, 1, 1])
LABELS = torch.tensor([[1.0, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 4.0]])
def test_multiclass_equals_the_formula(gamma, weights):
    factors = weights or [1.0] * 3
    p = [row.softmax(0)[label] for row, label in zip(OUTPUTS, TARGET, strict=True)]
    losses = [-factors[t] * (1 - q) ** gamma * q.log() for q, t in zip(p, TARGET.tolist(), strict=True)]
    torch.testing.assert_close(FocalLoss(gamma, weights)(OUTPUTS, TARGET), torch.stack(losses).mean())


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("weights", [None, [0.5, 3.0]])
def test_binary_is_two_classes_whose_first_logit_is_zero(gamma, weights):
    logits, target = OUTPUTS[:, 0], torch.tensor([1.0, 0.0, 0.0, 1.0])
    two = torch.stack([torch.zeros(4), logits], dim=1)
    loss = FocalLoss(gamma, weights)
    torch.testing.assert_close(loss(logits, target), loss(two, target.long()))


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0]])
def test_multilabel_weighs_the_positives_of_each_label(weights):
    p, factors = OUTPUTS.sigmoid(), torch.tensor(weights or [1.0] * 3)
    expected = -(factors * LABELS * (1 - p) ** 2 * p.log() + (1 - LABELS) * p**2 * (1 - p).log()).mean()
    torch.testing.assert_close(FocalLoss(2.0, weights)(OUTPUTS, LABELS), expected)


def test_without_focus_and_weights_it_is_cross_entropy():
    torch.testing.assert_close(FocalLoss(0.0)(OUTPUTS, TARGET), functional.cross_entropy(OUTPUTS, TARGET))
    expected = functional.binary_cross_entropy_with_logits(OUTPUTS, LABELS)
    torch.testing.assert_close(FocalLoss(0.0)(OUTPUTS, LABELS), expected)


@pytest.mark.parametrize("target", [torch.tensor([0]), torch.tensor([1])])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_gradients_of_a_model_that_is_sure_are_finite(target, gamma):
    outputs = torch.tensor([[200.0, -200.0]], requires_grad=True)
    FocalLoss(gamma)(outputs, target).backward()
    assert outputs.grad.isfinite().all()


@pytest.mark.parametrize(
    "spec",
    [
        "FocalLoss",
        "hybrid_lightning.FocalLoss",
        "hybrid_lightning.losses.FocalLoss",
        "hybrid_lightning.tasks.losses.FocalLoss",
        FocalLoss,
    ],
)
def test_our_loss_has_many_names_and_one_short_one(spec):
    assert parse_loss(spec) == ClassSpec("FocalLoss")
    assert isinstance(make_loss(parse_loss({"class_path": spec, "init_args": {"gamma": 1.0}})), FocalLoss)


@pytest.mark.parametrize(
    ("spec", "given", "match"),
    [
        ("FocalLos", {}, r"model\.loss_function\.class_path: unknown loss 'FocalLos'. Did you mean 'FocalLoss'"),
        ("nopkg.Loss", {}, "no module 'nopkg'"),
        (3, {}, "not 3"),
        ({"class_path": "FocalLoss", "args": {}}, {}, "unknown key 'args'. .*'init_args'"),
        ({"class_path": "FocalLoss", "init_args": {"gama": 1}}, {}, "mean 'gamma'"),
        ({"class_path": "FocalLoss", "init_args": {"gamma": -1}}, {}, "gamma: -1"),
        ("torch.nn.Linear", {}, "'in_features', 'out_features' must be given"),
        ({"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}, {}, "has parameters"),
        ("torch.nn.MSELoss", {"class_weights": [1.0]}, r"model\.class_weights: torch\.nn\.MSELoss takes no argument"),
        ("os.getcwd", {}, "is not an nn.Module"),
        ({"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weight": [1.0]}}, {}, "refuses its arguments"),
    ],
)  # fmt: skip
def test_what_is_no_loss_is_told(spec, given, match):
    with pytest.raises(ConfigError, match=match):
        make_loss(parse_loss(spec), given=given)


class Own(nn.MSELoss):
    """Somebody's own."""


@pytest.mark.parametrize("path", [f"{__name__}.Own", "timm.create_model", "transformers.AutoModel", "os.system"])
def test_a_file_names_no_code_unless_it_is_trusted(path):
    with pytest.raises(ConfigError, match=r"neither a loss of ours nor of torch\.nn"):
        make_loss(parse_loss(path), trust=())
    assert isinstance(make_loss(parse_loss(f"{__name__}.Own"), trust=["tests"]), Own)
    assert isinstance(make_loss(parse_loss("torch.nn.MSELoss"), trust=()), nn.MSELoss)

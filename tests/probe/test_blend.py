import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.probe.blend import blended, fit_blend, mixture

TARGETS = {
    "classes": torch.arange(90) % 3,
    "labels": (torch.arange(180).reshape(90, 2) % 5 < 2).float(),
    "values": torch.linspace(-3, 1000, 180).reshape(90, 2) ** 2,
}
KINDS = list(TARGETS)


def voter(kind: str, noise: float) -> torch.Tensor:
    """Outputs that are right but for noise."""
    target = TARGETS[kind]
    if kind == "values":
        return target + noise * target.std(0) * torch.randn(90, 2)
    goal = one_hot(target, 3) if kind == "classes" else target
    return 2 * (2 * goal - 1) + 3 * noise * torch.randn(goal.shape)


def loss(outputs: torch.Tensor, kind: str) -> float:
    target = TARGETS[kind]
    if kind == "classes":
        return float(cross_entropy(outputs, target))
    if kind == "labels":
        return float(torch.nn.functional.binary_cross_entropy_with_logits(outputs, target))
    return float(((outputs - target) / target.std(0)).square().mean())


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_weights_of_two_voters_are_better(kind):
    voters = {"image": voter(kind, 0.9).double(), "table": voter(kind, 1.0).double()}
    weights = fit_blend(voters, TARGETS[kind], kind)
    assert 0.1 < weights["table"] < 0.9
    least = loss(blended(voters, weights, kind), kind)
    for percent in range(101):
        other = {"image": percent / 100, "table": 1 - percent / 100}
        assert least <= loss(blended(voters, other, kind), kind) + 1e-7
    assert least < min(loss(outputs, kind) for outputs in voters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_voter_that_only_harms_has_the_weight_zero(kind):
    good = voter(kind, 0.2)
    harmful = -good if kind != "values" else 1000 * good.std(0) * torch.randn(90, 2)
    weights = fit_blend({"bad": harmful, "good": good}, TARGETS[kind], kind)
    assert weights == {"bad": 0.0, "good": 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_voters_share_and_one_alone_has_all(kind):
    outputs = voter(kind, 0.5)
    assert fit_blend({"only": outputs}, TARGETS[kind], kind) == {"only": 1.0}
    weights = fit_blend({"a": outputs, "b": outputs.clone()}, TARGETS[kind], kind)
    assert weights == {"a": pytest.approx(0.5, abs=1e-6), "b": pytest.approx(0.5, abs=1e-6)}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_rows_decide_whom_the_blend_follows(kind):
    first, second = voter(kind, 1.0), voter(kind, 1.0)
    first[:45], second[45:] = voter(kind, 0.1)[:45], voter(kind, 0.1)[45:]
    rows = torch.ones(90)
    rows[:45] = 20
    weights = fit_blend({"first": first, "second": second}, TARGETS[kind], kind, rows)
    assert weights["first"] > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_zero_ignores_a_voter_that_is_nan(kind):
    outputs = voter(kind, 0.5).requires_grad_()
    broken = torch.full_like(outputs, torch.nan).requires_grad_()
    found = blended({"good": outputs, "broken": broken}, {"good": 1.0, "broken": 0.0}, kind)
    assert torch.equal(found, blended({"good": outputs}, {"good": 1.0}, kind))
    log_weights = torch.tensor([0.0, -torch.inf])
    found = mixture(torch.stack([outputs, broken]), log_weights, kind)
    found.sum().backward()
    torch.testing.assert_close(found, blended({"good": outputs}, {"good": 1.0}, kind))
    assert outputs.grad.isfinite().all()


def test_classes_are_mixed_as_probabilities():
    voters = {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}
    found = blended(voters, {"a": 0.3, "b": 0.7}, "classes")
    expected = 0.3 * voters["a"].softmax(1) + 0.7 * voters["b"].softmax(1)
    torch.testing.assert_close(found.exp(), expected)


def test_labels_are_mixed_as_probabilities_without_overflow():
    voters = {"a": torch.tensor([[1.0, -2.0, 200.0]]), "b": torch.tensor([[0.5, 3.0, 180.0]])}
    found = blended(voters, {"a": 0.3, "b": 0.7}, "labels")
    expected = 0.3 * voters["a"].sigmoid() + 0.7 * voters["b"].sigmoid()
    torch.testing.assert_close(found.sigmoid(), expected)
    assert 180 <= found[0, 2] < 181


def test_values_are_averaged():
    voters = {"a": torch.tensor([[1.0]]), "b": torch.tensor([[5.0]])}
    assert blended(voters, {"a": 0.75, "b": 0.25}, "values").tolist() == [[2.0]]


def test_weights_can_be_trained():
    logits = torch.zeros(2, requires_grad=True)
    outputs = torch.stack([voter("classes", 0.1), voter("classes", 3.0)])
    cross_entropy(mixture(outputs, logits.log_softmax(0), "classes"), TARGETS["classes"]).backward()
    assert logits.grad[0] < 0 < logits.grad[1]


def test_logits_far_from_each_other_do_not_underflow():
    target = torch.tensor([0, 1] * 5)
    sure = torch.where(one_hot(target, 2) > 0, 0.0, 2000.0)  # sure of the wrong class
    weights = fit_blend({"sure": sure, "other": sure / 2}, target, "classes")
    assert weights == {"sure": 0.0, "other": 1.0}


def test_a_blend_of_nothing_is_an_error():
    with pytest.raises(ConfigError, match="held_out: there are no voters"):
        fit_blend({}, TARGETS["classes"], "classes")
    with pytest.raises(ConfigError, match="weights: weights have to be 0 or more"):
        blended({"a": torch.zeros(1, 2)}, {"a": 0.0}, "classes")
    with pytest.raises(ConfigError, match="weights: unknown voter 'image'"):
        blended({"imag": torch.zeros(1, 2)}, {"image": 1.0}, "classes")


def test_a_voter_with_impossible_outputs_is_named():
    good = voter("classes", 0.5)
    for broken, message in ((good[:5], r"the shape \(5, 3\) is not \(90, outputs\)"), (good / 0, "90 of 90 rows")):
        with pytest.raises(ConfigError, match=f"image.outputs: {message}"):
            fit_blend({"good": good, "image": broken}, TARGETS["classes"], "classes")


@pytest.mark.parametrize("kind", KINDS)
def test_the_fewer_rows_there_are_the_closer_weights_are_to_equal_ones(kind):
    voters = {"good": voter(kind, 0.2), "noisy": voter(kind, 2.0)}
    weights = [fit_blend(voters, TARGETS[kind], kind, prior=prior)["good"] for prior in (0.0, 5.0, 500.0, 5e6)]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] > 0.9
    assert weights[-1] == pytest.approx(0.5, abs=0.01)

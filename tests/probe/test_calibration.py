import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from hybrid_lightning.probe.calibration import class_link, fit_temperature, label_link


def outputs(rows: int = 200, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    target = torch.randint(classes, (rows,))
    goal = one_hot(target, classes).double()
    raw = 0.2 * goal + 0.3 + 0.15 * torch.randn(rows, classes, dtype=torch.float64)
    return raw, goal, target


def equal(goal: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(goal), dtype=torch.float64)


def test_the_link_improves_the_log_loss_of_classes():
    raw, goal, target = outputs()
    link = class_link(raw, goal, equal(goal))
    assert cross_entropy(link(raw), target) < 0.9 * cross_entropy(raw, target)


def test_no_other_factor_or_offset_has_a_lower_loss():
    raw, goal, _ = outputs()
    weights = torch.rand(len(raw), dtype=torch.float64)
    link = class_link(raw, goal, weights)
    softened = (200 * goal + 1 / 3) / 201

    def loss(factor: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        rows = cross_entropy(raw * factor + offset, softened, reduction="none")
        return weights @ rows / weights.sum()

    factor = link.factor.clone().requires_grad_()
    offset = link.offset.clone().requires_grad_()
    least = loss(factor, offset)
    least.backward()
    assert factor.grad.abs().max() < 1e-7
    assert offset.grad.abs().max() < 1e-7
    assert abs(least.item() - link.loss) < 1e-12


def test_outputs_against_the_target_get_the_factor_zero_and_the_frequencies():
    raw, goal, target = outputs()
    link = class_link(-raw, goal, equal(goal))
    assert link.factor.tolist() == [0.0]
    expected = (target.bincount() + 1 / 3) / 201 - 1e-9
    torch.testing.assert_close(link(-raw)[0].softmax(0), expected.double(), rtol=0, atol=0.01)
    torch.testing.assert_close(link.offset.exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_perfect_separation_and_an_absent_class_stay_finite():
    goal = one_hot(torch.tensor([0, 1] * 10), 3).double()
    link = class_link(goal, goal, equal(goal))
    probabilities = link(goal).softmax(1)
    assert link.factor.isfinite().all()
    assert (probabilities[:, 2] < 0.05).all()
    assert (probabilities * goal).sum(1).min() > 0.9


def test_the_size_of_the_outputs_does_not_matter():
    raw, goal, _ = outputs()
    small = class_link(1e-9 * raw, goal, equal(goal))
    torch.testing.assert_close(small(1e-9 * raw), class_link(raw, goal, equal(goal))(raw))


def test_each_label_has_its_own_factor_and_offset():
    goal = (torch.rand(300, 2) < torch.tensor([0.5, 0.1])).double()
    raw = torch.randn(300, 2, dtype=torch.float64) * 0.1
    raw[:, 0] += goal[:, 0]
    link = label_link(raw, goal, equal(goal))
    assert link.factor[0] > 8
    assert link.factor[1] < 5
    rates = link(raw).sigmoid().mean(0)
    torch.testing.assert_close(rates, goal.mean(0), rtol=0, atol=0.005)


def test_a_label_that_never_occurs_is_improbable_and_finite():
    raw = torch.randn(50, 1, dtype=torch.float64)
    link = label_link(raw, torch.zeros_like(raw), equal(raw))
    logits = link(raw)
    assert logits.isfinite().all()
    assert logits.sigmoid().max() < 0.02


def too_sure(rows: int = 2000, factor: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are right but for a factor, and classes drawn by the right ones."""
    right = torch.randn(rows, 4, dtype=torch.float64)
    return factor * right, torch.distributions.Categorical(logits=right).sample()


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_the_temperature_takes_a_factor_of_logits_back(factor):
    logits, target = too_sure(factor=factor)
    assert fit_temperature(logits, target, "classes") == pytest.approx(factor, rel=0.1)


def test_no_other_temperature_has_a_lower_loss():
    logits, target = too_sure()
    softened = (2000 * one_hot(target, 4).double() + 1 / 4) / 2001
    temperature = torch.tensor(fit_temperature(logits, target, "classes"), dtype=torch.float64, requires_grad=True)
    cross_entropy(logits / temperature, softened).backward()
    assert temperature.grad.abs() < 1e-7


def test_labels_share_one_temperature():
    right = torch.randn(1500, 3)
    target = torch.bernoulli(right.sigmoid())
    found = fit_temperature(4 * right, target, "labels")
    assert found == pytest.approx(4, rel=0.1)
    assert binary_cross_entropy_with_logits(4 * right / found, target) < binary_cross_entropy_with_logits(
        4 * right, target
    )


def test_logits_that_are_honest_stay_as_they_are():
    found = []
    for seed in range(40):
        torch.manual_seed(seed)
        found.append(fit_temperature(*too_sure(150, factor=1.0), "classes"))
    assert sum(temperature == 1 for temperature in found) >= 34  # two standard errors, roughly


def test_a_few_rows_say_nothing_of_a_temperature():
    logits, target = too_sure(99)
    assert fit_temperature(logits, target, "classes") == 1
    assert fit_temperature(*too_sure(100), "classes") != 1


def test_rows_that_are_told_twenty_times_are_hardly_more_evidence():
    found = []
    groups = torch.arange(12).repeat_interleave(20)
    for seed in range(20):
        torch.manual_seed(seed)
        logits, target = too_sure(12, 1.0)
        rows = logits[groups], target[groups], "classes"
        found.append([fit_temperature(*rows) != 1, fit_temperature(*rows, groups) != 1])
    taken, by_groups = torch.tensor(found).sum(0).tolist()
    assert by_groups <= taken / 2


def test_outputs_that_separate_the_classes_have_a_finite_temperature():
    target = torch.arange(300) % 3
    assert 0.01 <= fit_temperature(5.0 * one_hot(target, 3), target, "classes") < 1

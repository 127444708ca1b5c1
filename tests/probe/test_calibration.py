import torch
from torch.nn.functional import cross_entropy, one_hot

from hybrid_lightning.probe.calibration import class_link, label_link


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

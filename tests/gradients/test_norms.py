import pytest
import torch
from torch import nn

from hybrid_lightning.gradients.norms import GradientPass, MeasuredGroups, _is_below, gradient_norms


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for parameter in made:
        parameter.grad = torch.randn_like(parameter) * 3
    return made


def copies(originals: list[nn.Parameter]) -> list[nn.Parameter]:
    made = [nn.Parameter(p.detach().clone()) for p in originals]
    for copy, original in zip(made, originals, strict=True):
        copy.grad = original.grad.clone()
    return made


def gradient_pass(groups) -> GradientPass:
    return GradientPass(MeasuredGroups(groups, groups))


def one_part(own: list[nn.Parameter]) -> GradientPass:
    return gradient_pass([{"name": "image", "part": "image", "params": own}])


@pytest.mark.parametrize("max_norm", [0.1, 5.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_norm_and_clipping_equal_torchs(max_norm, dtype):
    ours = parameters((3, 4), (5,), (), dtype=dtype)
    theirs = copies(ours)
    gradients = one_part(ours)
    gradients.clip_norm(max_norm)
    total = nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(gradients.before.norm(), total)
    torch.testing.assert_close(gradients.norms, gradient_norms(ours))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_gradients_within_the_limit_stay_bit_equal():
    ours = parameters((3, 4))
    before = ours[0].grad.clone()
    one_part(ours).clip_norm(1e6)
    assert torch.equal(ours[0].grad, before)


def test_low_precision_gradients_are_summed_in_float32():
    [parameter] = parameters((10_000,), dtype=torch.bfloat16)
    [norm] = gradient_norms([parameter])
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm, parameter.grad.float().norm())


def test_double_gradients_keep_their_precision():
    single, double = parameters((3,)), parameters((3,), dtype=torch.float64)
    norms = gradient_norms([*single, *double])
    assert norms.dtype == torch.float64
    assert norms[1] == double[0].grad.norm()


def test_a_norm_that_is_not_finite_is_seen():
    bad = parameters((3,), (2,))
    bad[0].grad[1] = float("nan")
    assert gradient_norms(bad).isnan().tolist() == [True, False]


def test_a_norm_that_is_not_finite_stays_within_its_part_and_the_total():
    image, table = parameters((3,), (2,))
    image.grad[1] = float("inf")
    groups = [{"name": name, "part": name, "params": [own]} for name, own in (("image", image), ("table", table))]
    gradients = gradient_pass(groups)
    assert gradients.rows.combine(gradients.norms).isfinite().tolist() == [False, True, False]


def test_parts_combine_the_norms_of_all_their_groups():
    a, b, c, frozen = parameters((3, 4), (5,), (2, 2), (7,))
    frozen.grad = None
    groups = [
        {"name": "image.layer1", "part": "image", "params": [a, frozen]},
        {"name": "head", "part": "head", "params": [b]},
        {"name": "table", "part": "table", "params": [frozen]},
        {"name": "image.layer2/no_decay", "part": "image", "params": [c]},
    ]
    gradients = gradient_pass(groups)
    ours = dict(zip(gradients.rows.names, gradients.rows.combine(gradients.norms), strict=True))
    image = torch.cat([a.grad.flatten(), c.grad.flatten()]).norm()
    total = nn.utils.clip_grad_norm_([a, b, c], 1e9)
    expected = {"image": image, "head": b.grad.norm(), "table": torch.tensor(0.0), "total": total}
    expected |= {"image.layer1": a.grad.norm(), "image.layer2": c.grad.norm()}
    assert ours.keys() == expected.keys()
    for part, norm in expected.items():
        torch.testing.assert_close(ours[part], norm)


def test_groups_that_do_not_train_have_rows_and_are_not_measured():
    a, frozen = parameters((3, 4), (7,))
    groups = [
        {"name": "image", "part": "image", "params": [frozen]},
        {"name": "head", "part": "head", "params": [a]},
    ]
    gradients = GradientPass(MeasuredGroups(groups, groups[1:]))
    assert gradients.rows.names == ("image", "head", "total")
    head = a.grad.norm()
    torch.testing.assert_close(gradients.rows.combine(gradients.norms), torch.stack([torch.tensor(0.0), head, head]))


def test_no_gradients_at_all_have_norm_zero():
    gradients = one_part([nn.Parameter(torch.ones(2))])
    gradients.clip_norm(1.0)
    gradients.clip_value(1.0, "image")
    assert gradients.rows.names == ("image", "total")
    assert gradients.rows.combine(gradients.norms).tolist() == [0, 0]


def test_a_norm_below_the_limit_is_looked_at_on_the_cpu_alone():
    assert _is_below(torch.ones(()), 1.5)
    assert not _is_below(torch.ones(()), 1.0)
    assert not _is_below(torch.tensor(float("nan")), 1.0)
    assert not _is_below(torch.ones((), device="meta"), 1.5)

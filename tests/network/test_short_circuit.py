import math

import pytest
import torch
from torch import nn

from hybrid_lightning.network.short_circuit import Like, ShortCircuit, layout, part_of, place_in


class Net(nn.Module):
    """A layer before the boundary that is used again behind it, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.second, self.last = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x):
        return self.last(self.shared(self.second(self.shared(self.first(x)).relu())).mul_(2))


LIKE = layout(torch.zeros(2, 3), torch.zeros(3, 3))
CUT = ShortCircuit("second", [LIKE], {"first": [LIKE], "shared": [LIKE], "second": [LIKE]}, [])


def test_a_run_from_the_boundary_on_equals_a_whole_one():
    net = Net()
    for samples in (1, 5):
        x = torch.randn(samples, 3)
        kept = CUT.capture(net, [x])
        assert torch.equal(kept, net.second(net.shared(net.first(x)).relu()))
        before = kept.clone()
        assert torch.equal(CUT.run(net, kept), net(x))
        assert torch.equal(kept, before), "it is not changed in place"


def test_the_gradient_is_that_of_a_whole_run():
    net, x = Net(), torch.randn(4, 3)
    found = []
    for run in (lambda: net(x), lambda: CUT.run(net, CUT.capture(net, [x]).detach())):
        net.zero_grad()
        run().sum().backward()
        found.append(net.last.weight.grad.clone())
    assert torch.equal(*found)


def test_the_module_is_as_before_also_after_an_error():
    net, x = Net(), torch.randn(4, 3)
    own = net.first.forward
    vars(net.first)["forward"] = own
    with pytest.raises(RuntimeError):
        CUT.run(net, torch.randn(4, 7))
    assert vars(net.first)["forward"] is own
    assert "forward" not in vars(net.second)
    assert net(x).shape == (4, 3)
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_that_change_an_output_run_once():
    net, x = Net(), torch.randn(4, 3)
    net.second.register_forward_hook(lambda module, inputs, output: output + 1)
    assert torch.equal(CUT.run(net, CUT.capture(net, [x])), net(x))


def test_the_layout_has_the_sizes_that_grow_with_the_batch():
    like = layout({"a": [torch.zeros(8, 5), 3]}, {"a": [torch.zeros(12, 5), 3]})["a"][0]
    assert like == Like((0, 5), (4, 0), torch.float32, torch.device("cpu"))
    assert like.made(7, 1.0).shape == (28, 5)
    assert not like.has_samples_first
    assert LIKE.has_samples_first
    assert LIKE.bytes == 12
    assert LIKE.made(2, math.nan).isnan().all()
    numbers = layout(torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    assert numbers.made(4, math.nan).tolist() == [0] * 4
    with pytest.raises(ValueError, match="becomes 4"):
        layout([3], [4])


def test_a_place_names_its_part():
    assert part_of(place_in("image", "layers.1")) == part_of("image") == "image"

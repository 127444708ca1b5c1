import pickle
import sys
from functools import partial

import numpy as np
import pytest
import torch

from hybrid_lightning.data.transforms import RandomFlip, apply_steps, make_steps
from hybrid_lightning.errors import ConfigError, at

IMAGE = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))


def made(items):
    """The transforms of a list, in turn."""
    return partial(apply_steps, steps=make_steps(items))


def make(path, **arguments):
    with at("data.inputs.photo.train"):
        return made([{"class_path": path, "init_args": arguments}])


def scaled_by(value, factor=2.0):
    return value * factor


def to_numpy(value):
    return value.numpy()


class Flaky:
    def __init__(self, size=None):
        if size == 0:
            raise RuntimeError("no size")

    def __call__(self, value):
        raise RuntimeError("out of luck")


class OfItsOwnState:
    """Draws as transforms of MONAI do."""

    def __init__(self):
        self.random = np.random.RandomState()

    def set_random_state(self, seed):
        self.random = np.random.RandomState(seed)

    def __call__(self, value):
        return value + float(self.random.rand())


class Tagged(torch.Tensor):
    pass


def tagged(value):
    return value.as_subclass(Tagged)


def test_a_flip_mirrors_with_its_probability():
    assert torch.equal(make("RandomFlip", p=1.0)(IMAGE), IMAGE.flip(2))
    assert torch.equal(make("RandomFlip", p=1.0, dim=-2)(IMAGE), IMAGE.flip(1))
    flip = make("RandomFlip", p=0.3)
    flipped = sum(not torch.equal(flip(IMAGE), IMAGE) for _ in range(1000))
    assert 250 < flipped < 350
    assert torch.equal(make("RandomFlip", p=0.0)(IMAGE), IMAGE)


def test_a_crop_is_a_window_at_any_place():
    crop = make("RandomCrop", size=[5, 6])
    windows = [IMAGE[:, top : top + 5, left : left + 6] for top in range(2) for left in range(3)]
    seen = set()
    for _ in range(80):
        found = crop(IMAGE)
        seen |= {i for i, window in enumerate(windows) if torch.equal(window, found)}
        assert found.shape == (3, 5, 6)
    assert seen == set(range(6))


def test_a_crop_may_reach_into_zeros_beside_the_sample():
    found = torch.stack([make("RandomCrop", size=4, padding=2)(torch.ones(1, 4, 4)) for _ in range(60)])
    assert {int(window.sum()) for window in found} <= {4, 6, 8, 9, 12, 16}
    assert (found.flatten(1).sum(1) < 16).any()
    assert make("RandomCrop", size=3)(torch.ones(2, 5)).shape == (2, 3), "series, and volumes, alike"
    assert make("RandomCrop", size=3)(torch.ones(1, 5, 4, 3)).shape == (1, 3, 3, 3)


def test_normalize_subtracts_the_mean_and_divides_by_the_deviation():
    found = make("Normalize", mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])(IMAGE)
    torch.testing.assert_close(found[2], (IMAGE[2] - 0.3) / 0.7)
    torch.testing.assert_close(found[0], (IMAGE[0] - 0.1) / 0.5)


@pytest.mark.parametrize(
    "item",
    [
        "RandomFlip",
        {"class_path": "RandomCrop", "init_args": {"size": 3}},
    ],
)
def test_random_transforms_repeat_with_torchs_seed(item):
    transforms = made([item, f"{__name__}.OfItsOwnState"])
    first, again = [], []
    for results in (first, again):
        torch.manual_seed(3)
        results += [transforms(IMAGE) for _ in range(5)]
    assert all(map(torch.equal, first, again))
    assert not all(torch.equal(first[0], other) for other in first[1:])


def test_any_callable_has_its_path():
    assert torch.equal(make(f"{__name__}.scaled_by")(IMAGE), 2 * IMAGE)
    assert torch.equal(make(f"{__name__}.scaled_by", factor=3)(IMAGE), 3 * IMAGE)


def test_transforms_of_torchvision_repeat_with_torchs_seed():
    pytest.importorskip("torchvision")
    assert torch.equal(make("torchvision.transforms.v2.RandomHorizontalFlip", p=1.0)(IMAGE), IMAGE.flip(2))
    inner = [{"class_path": f"{__name__}.scaled_by", "init_args": {"factor": 5}}]
    chosen = make("torchvision.transforms.v2.RandomApply", transforms=inner, p=1.0)
    assert torch.equal(chosen(IMAGE), 5 * IMAGE)
    crop, results = make("torchvision.transforms.v2.RandomResizedCrop", size=4), []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(torch.stack([crop(IMAGE) for _ in range(5)]))
    assert torch.equal(*results)
    with pytest.raises(ConfigError, match=r"^data\.inputs\.photo\.train\.0: .*unknown name 'Flip'"):
        make("torchvision.transforms.v2.Flip")


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("RandomCrop", {"size": [4, 5]}, (3, 4, 5)),
        ("RandomResizedCrop", {"size": [4, 5]}, (3, 4, 5)),
        ("Normalize", {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}, (3, 6, 8)),
        ("RandomHorizontalFlip", {"p": 1.0}, (3, 6, 8)),
        ("LongestMaxSize", {"max_size": 4}, (3, 3, 4)),
    ],
)
def test_a_transform_of_kornia_keeps_the_dimensions_of_a_sample(name, arguments, shape):
    change = make(f"kornia.augmentation.{name}", **arguments)
    assert change(IMAGE).shape == shape
    assert change(torch.stack([IMAGE] * 2)).shape == (2, *shape)


def test_a_live_transform_of_kornia_keeps_them_too():
    change = pytest.importorskip("kornia.augmentation").RandomHorizontalFlip(p=1.0)  # as the command line gives it
    assert made([change])(IMAGE).shape == IMAGE.shape


def test_transforms_of_monai_repeat_with_torchs_seed():
    pytest.importorskip("monai")
    noise, results = make("monai.transforms.RandGaussianNoise", prob=1.0), []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(torch.stack([noise(IMAGE) for _ in range(3)]))
    assert torch.equal(*results)
    assert type(results[0]) is torch.Tensor
    assert not torch.equal(results[0][0], results[0][1])


def test_a_live_callable_is_taken_as_it_is():
    assert torch.equal(made([scaled_by, RandomFlip(p=1.0)])(IMAGE), 2 * IMAGE.flip(2))


def test_a_subclass_of_tensor_becomes_a_tensor():
    found = made([f"{__name__}.tagged"])(IMAGE)
    assert type(found) is torch.Tensor


def test_nothing_to_do_is_nothing():
    assert made([])(IMAGE) is IMAGE


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("RandomFlip", r"^x: 'RandomFlip' is not a list\. Write such as \[\{class_path: RandomFlip\}\]"),
        ([3], r"^x\.0: write \{class_path: RandomFlip, init_args: .*\} or a class name, not 3"),
        ([{"class_path": "RandomFlip", "args": {}}], r"^x\.0: unknown key 'args'"),
        (["RandomFlop"], r"^x\.0: unknown name 'RandomFlop'\. Did you mean 'RandomFlip'\?"),
        ([{"class_path": "RandomFlip", "init_args": {"q": 1}}], r"^x\.0\.init_args: unknown argument 'q'"),
        ([{"class_path": "RandomFlip", "init_args": {"p": 2}}], r"^x\.0\.init_args\.p: 2 is not a number at least 0"),
        ([{"class_path": "RandomFlip", "init_args": [1]}], r"^x\.0\.init_args: \[1\] are not names and values"),
        (["RandomCrop"], r"^x\.0\.init_args: 'size' must be given"),
        (["RandomFlip", "no_such_package.Flip"], r"^x\.1: 'no_such_package\.Flip' cannot be imported"),
        (["torch.nn.Flip"], r"^x\.0: .*unknown name 'Flip'"),
        (
            [{"class_path": f"{__name__}.Flaky", "init_args": {"size": 0}}],
            r"^x\.0\.init_args: '.*Flaky' refuses .*: no size",
        ),
    ],
)
def test_an_impossible_transform_is_told_with_its_place(items, message):
    with pytest.raises(ConfigError, match=message), at("x"):
        made(items)


def test_a_missing_library_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ConfigError, match=r"'kornia\.augmentation\.RandomAffine' needs kornia.*\[kornia\]"):
        make("kornia.augmentation.RandomAffine", degrees=3.0)


def test_a_transform_that_fails_or_returns_no_tensor_is_told():
    with pytest.raises(ConfigError, match=r"^0: Flaky fails on a tensor \(3, 6, 8\): out of"):
        make(f"{__name__}.Flaky")(IMAGE)
    with pytest.raises(ConfigError, match=r"^0: to_numpy returns a ndarray for a tensor \(3, 6, 8\)\. A trans"):
        make(f"{__name__}.to_numpy")(IMAGE)
    with pytest.raises(ConfigError, match=r"RandomCrop fails .*a window of \[9, 9\] does not fit into \[6, 8\]"):
        make("RandomCrop", size=9)(IMAGE)


def test_transforms_can_be_sent_to_another_process():
    items = [{"class_path": "RandomCrop", "init_args": {"size": 4}}, {"class_path": f"{__name__}.scaled_by"}]
    sent = pickle.loads(pickle.dumps(made(items)))
    assert sent(IMAGE).shape == (3, 4, 4)

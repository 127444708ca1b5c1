import sys
from collections import OrderedDict

import pytest
from torch import nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.importing import check_arguments
from hybrid_lightning.network.modules.mlp import MLP
from hybrid_lightning.network.registry import (
    REGISTRY,
    forbid_fetching,
    refuse_hidden_weights,
    register,
    resolve,
    switch_weights,
)


@pytest.fixture
def module_with_side_effect(tmp_path, monkeypatch):
    """A module whose import leaves a folder behind."""
    marker = tmp_path / "marker"
    (tmp_path / "hl_side_effect.py").write_text(f"import os; os.mkdir({str(marker)!r})\ndef make(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield marker
    sys.modules.pop("hl_side_effect", None)


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize("trust", [None, ()])
def test_every_built_in_name_resolves_to_a_module_class(name, trust):
    assert issubclass(resolve(name, "here", trust), nn.Module)


def test_a_registered_factory_has_a_bare_name_that_files_may_use(monkeypatch):
    monkeypatch.setitem(REGISTRY, "Mine", nn.Linear)  # is taken out again afterwards
    register("Mine", nn.Identity)
    assert resolve("Mine", "here", trust=()) is nn.Identity


@pytest.mark.parametrize("path", ["torch.nn.Linear", "torch.nn.modules.linear.Linear"])
@pytest.mark.parametrize("trust", [None, ()])
def test_layers_of_torch_are_always_allowed(path, trust):
    assert resolve(path, "here", trust) is nn.Linear


@pytest.mark.parametrize(
    "path",
    [
        "subprocess.check_call",
        "os.system",
        "builtins.eval",
        "pickle.loads",
        "torch.load",
        "torch.hub.load",
        "torch.nn.modules.module.torch.os.system",
        "torch.nn.modules.module.torch.load",
        "torch.nn.modules.module.torch.nn.Linear.forward.__globals__",
        "torch.nn.modules.module.functools.partial",
        "torch.nn.Linear.load_state_dict",
        "torch.nn.init.ones_",
        "torch.nn.functional.relu",
        "torch.nnx.Linear",
        "torch.utils.model_zoo.load_url",
        "collections.OrderedDict",
        "hybrid_lightning.weights.safe_files.save_weights",
        "hybrid_lightning.cli.export.export_part",
        "torchvisionx.models.resnet18",
    ],
)
@pytest.mark.parametrize("trust", [(), ("colle",), ("os.path", "torch.nn.modules.linear"), ("",), "collections"])
def test_a_file_cannot_name_code_outside_the_allowed_places(path, trust):
    with pytest.raises(ConfigError, match=r"^here: the file names .* outside the allowed places.*trust=\[") as error:
        resolve(path, "here", trust)
    assert repr(path) in str(error.value)


def test_what_is_refused_is_not_even_imported(module_with_side_effect):
    with pytest.raises(ConfigError, match=r"trust=\['hl_side_effect'\]"):
        resolve("hl_side_effect.make", "here", trust=())
    assert not module_with_side_effect.exists()
    assert "hl_side_effect" not in sys.modules
    assert resolve("hl_side_effect.make", "here", trust=("hl_side_effect",)).__name__ == "make"
    assert module_with_side_effect.exists()


@pytest.mark.parametrize("trust", [None, ("collections",), ["collections.OrderedDict"], {"collections"}])
def test_a_trusted_package_is_allowed(trust):
    assert resolve("collections.OrderedDict", "here", trust) is OrderedDict


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("MLQ", r"^here: unknown module 'MLQ'. Did you mean 'MLP'\? Possible: .*'ConvExtractor'"),
        ("Linear", r"^here: unknown module 'Linear'.*Possible:"),
        ("torch.nn.Liner", r"^here: 'torch\.nn\.Liner': unknown name 'Liner'. Did you mean 'Linear'\?"),
        ("no_such_package.thing", r"^here: 'no_such_package\.thing' cannot be imported: there is no module"),
        ("math.pi", r"^here: 'math\.pi' is a float, not a class or function"),
        (".relative.thing", r"^here: unknown module '\.relative\.thing'"),
        ("torch.nn.", r"^here: unknown module 'torch\.nn\.'"),
        ("", r"^here: unknown module ''"),
    ],
)
def test_a_path_to_nothing_is_refused(path, message):
    with pytest.raises(ConfigError, match=message):
        resolve(path, "here")


def test_a_missing_dependency_of_a_users_module_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "hl_needs_more.py").write_text("import hl_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="hl_not_installed"):
        resolve("hl_needs_more.make", "here")


@pytest.mark.parametrize(
    "args",
    [
        {"pretrained": True},
        {"weights": "DEFAULT"},
        {"weights_backbone": "DEFAULT"},
        {"checkpoint_path": "x.pt"},
        {"trust_remote_code": True},
        {"model_name": "hf-hub:someone/something"},
        {"model_name": "local-dir:/tmp/x"},
        {"anything": "https://example.org/x"},
        {"config": {"pretrained": True}},
        {"config": {"model_args": [{"checkpoint_path": "x.pt"}]}},
    ],
)
def test_a_file_cannot_make_a_factory_fetch_something(args):
    with pytest.raises(ConfigError, match=rf"^{next(iter(args))}[a-z_.]*: .* refused in a checkpoint"):
        forbid_fetching(nn.Linear, "timm.create_model", args)


def test_plain_arguments_are_no_fetching():
    args = {"model_name": "resnet18", "pretrained": False, "weights": None, "depth": 3}
    forbid_fetching(nn.Linear, "timm.create_model", args)
    inside = {"config": {"prefix": "translate: ", "use_pretrained_backbone": False, "pretrained": False}}
    forbid_fetching(nn.Linear, "transformers.AutoModel", inside)


def segmentation(weights: object = None, weights_backbone: object = "IMAGENET") -> nn.Module:
    return nn.Identity()


segmentation.__module__ = "torchvision.models.segmentation"


def test_a_torchvision_factory_named_by_a_file_does_not_fetch_its_default_weights():
    args: dict[str, object] = {}
    forbid_fetching(segmentation, "torchvision.models.segmentation.any", args)
    assert args == {"weights": None, "weights_backbone": None}


@pytest.mark.parametrize(("load", "weights"), [(True, "DEFAULT"), (False, None)])
def test_pretrained_weights_of_torchvision_are_switched_on_by_its_own_argument(load, weights):
    args: dict[str, object] = {}
    assert switch_weights(segmentation, args, load)
    assert args == {"weights": weights}
    assert not switch_weights(nn.Linear, args, load)


def test_weights_hidden_in_the_arguments_of_an_untrained_part_are_refused():
    with pytest.raises(ConfigError, match=r"^pretrained: True .*write 'weights: pretrained'"):
        refuse_hidden_weights("timm.create_model", {"pretrained": True})
    refuse_hidden_weights("my_package.Net", {"weights": [0.5, 0.5]})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"in_features": 3, "hiden": [4]}, r"^here: unknown argument 'hiden'. Did you mean 'hidden'\?"),
        ({"hidden": [4]}, r"^here: 'in_features' must be given. Arguments: 'in_features', 'hidden'"),
    ],
)
def test_arguments_are_compared_with_the_signature(args, message):
    with pytest.raises(ConfigError, match=message):
        check_arguments(MLP, args, "here")


def test_any_argument_goes_where_the_signature_takes_any():
    check_arguments(lambda a, **rest: None, {"a": 1, "b": 2}, "here")
    check_arguments(nn.LSTM, {"input_size": 3, "hidden_size": 4}, "here")

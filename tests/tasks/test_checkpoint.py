import copy
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import hybrid_lightning
from hybrid_lightning import ConfigError, HybridClassifier, HybridTask
from hybrid_lightning.network.record import NetworkRecord
from hybrid_lightning.tasks.checkpoint import concrete_subclasses
from tests.processes import succeed
from tests.small import CONFIG, classifier, command, loader, regressor, table, trainer, write

ROOT = Path(hybrid_lightning.__file__).parents[1]
PLAIN = (type(None), bool, int, float, str, torch.Tensor)


def data(samples: int = 16):
    return loader({"x": table(samples), "target": torch.arange(samples) % 3})


def saved(model: HybridTask, path: Path, **options) -> Path:
    """The checkpoint of one epoch."""
    run = trainer(**options)
    run.fit(model, data())
    run.save_checkpoint(path)
    return path


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return saved(classifier(), tmp_path / "x.ckpt")


def forged(path: Path, **changes) -> Path:
    """The checkpoint with other values in what the task saved, at dotted paths written with ``__``."""
    content = torch.load(path, weights_only=True)
    for where, value in changes.items():
        *sections, last = where.split("__")
        place = content["hybrid_lightning"]
        for section in sections:
            place = place[section]
        place[last] = value
    torch.save(content, path)
    return path


def with_state(path: Path, state: object) -> None:
    torch.save({**torch.load(path, weights_only=True), "state_dict": state}, path)


def leaves(value):
    if isinstance(value, dict):
        for entry in [*value.keys(), *value.values()]:
            yield from leaves(entry)
    elif isinstance(value, list | tuple | set):
        for entry in value:
            yield from leaves(entry)
    else:
        yield value


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": torch.optim.SGD, "class_weights": torch.tensor([1.0, 2.0, 3.0])},
        {"optimizer": {"class_path": torch.optim.SGD, "init_args": {"momentum": 0.9}}},
        {"scheduler": {"class_path": torch.optim.lr_scheduler.StepLR, "init_args": {"step_size": 1}}},
        {"parts": {"x": {"module": nn.Linear, "args": {"out_features": 3}}}},
        {"parts": {"x": nn.Linear(4, 3), "y": {"module": "MLP", "input": "x"}}},
        {"rates": {"shape": "cosine", "warm_up": "2 steps"}},
    ],
)
def test_a_checkpoint_holds_plain_data_only(options, tmp_path):
    content = torch.load(saved(classifier(**options), tmp_path / "x.ckpt"), weights_only=True)
    own = content["hybrid_lightning"]
    assert not [leaf for leaf in leaves(own) if type(leaf) not in PLAIN]
    assert {"settings", "parts", "groups", "network", "task", "version"} <= own.keys()


def test_group_names_come_with_their_parameter_names(checkpoint):
    groups = torch.load(checkpoint, weights_only=True)["hybrid_lightning"]["groups"]
    assert groups["head"] == ["parts.head.linear.weight"]
    assert groups["head/no_decay"] == ["parts.head.linear.bias"]


@pytest.mark.parametrize(
    "value", [nn.ReLU(), nn.ReLU, torch.ones(2), object()], ids=["module", "class", "tensor", "object"]
)
def test_an_option_that_a_checkpoint_cannot_hold_is_refused_at_once(value):
    with pytest.raises(ConfigError, match=r"model\.parts\.x\.args\.activation: .*live module"):
        classifier(parts={"x": {"module": "MLP", "args": {"activation": value}}})


@pytest.mark.parametrize("make", [classifier, regressor])
def test_a_model_is_rebuilt_without_arguments(make, tmp_path):
    model = make()
    run = trainer()
    target = torch.arange(16) % 3 if make is classifier else table(16)[:, 0]
    run.fit(model, loader({"x": table(16), "target": target}))
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = HybridTask.load_from_checkpoint(tmp_path / "x.ckpt")
    assert type(again) is type(model)
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again({"x": table()}), model.eval()({"x": table()}))


def test_a_new_process_without_network_gives_bit_equal_outputs(tmp_path):
    weights = {"module": "MLP", "args": {"hidden": [5]}}
    model = classifier(
        parts={"x": weights, "y": {"module": "torch.nn.Linear", "args": {"out_features": 2}, "input": "x"}}
    )
    path = saved(model, tmp_path / "x.ckpt")
    torch.save(table(), tmp_path / "input.pt")
    script = """
import socket, sys
class Refused(socket.socket):
    def __init__(self, *args, **kwargs): raise SystemExit("the network was used")
socket.socket = Refused
import torch
from hybrid_lightning import HybridTask
model = HybridTask.load_from_checkpoint(sys.argv[1])
with torch.no_grad():
    torch.save(model({"x": torch.load(sys.argv[2])}), sys.argv[3])
"""
    paths = [str(path), str(tmp_path / "input.pt"), str(tmp_path / "output.pt")]
    succeed("-c", script, *paths, cwd=tmp_path)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "output.pt"), model.eval()({"x": table()}))


def test_weights_that_a_part_started_from_are_not_needed_again(tmp_path):
    torch.save({"weight": torch.ones(3, 4), "bias": torch.zeros(3)}, tmp_path / "start.pt")
    part = {"module": "torch.nn.Linear", "args": {"out_features": 3}, "weights": str(tmp_path / "start.pt")}
    path = saved(classifier(parts={"x": part}, pretrained={"unfreeze": "never"}), tmp_path / "x.ckpt")
    (tmp_path / "start.pt").unlink()
    again = HybridTask.load_from_checkpoint(path)
    assert again.parts["x"].origin == "pretrained"
    assert torch.equal(again.built().parts["x"].weight, torch.ones(3, 4))


# Files of strangers


def refused(path: Path, match: str, **options) -> None:
    before = set(path.parent.iterdir())
    with pytest.raises(ConfigError, match=match):
        HybridTask.load_from_checkpoint(path, **options)
    assert set(path.parent.iterdir()) == before


@pytest.mark.parametrize(
    "module",
    [
        "subprocess.check_call",
        "os.system",
        "builtins.eval",
        "torch.hub.load",
        "torch.load",
        "torch.nn.modules.module.torch.load",
        "torch.nn.functional.linear",
        "torch.nn.Module.__init_subclass__",
        "hybrid_lightning.cli.main",
        "tests.small.command",
        "pickle.loads",
        "torchvision.models.resnet18.__globals__",
    ],
)
@pytest.mark.parametrize("where", ["parts__x", "fusion"])
def test_a_path_outside_the_allowed_places_is_refused_and_nothing_runs(module, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two = classifier(
        parts={"x": {"module": "MLP"}, "y": {"module": "MLP", "input": "x"}, "z": {"module": "MLP", "input": "x"}}
    )
    checkpoint = saved(two, tmp_path / "x.ckpt")
    arguments = {"args": ["touch", "pwned"]} if module == "subprocess.check_call" else {}
    path = forged(checkpoint, **{f"{where}__module": module, f"{where}__args": arguments})
    refused(path, "outside the allowed places|needs torchvision|unknown module|is refused")


def test_a_package_that_is_trusted_by_name_may_be_used(checkpoint):
    own = f"{__name__}.Net"
    with pytest.raises(ConfigError, match=rf"trust=\['{__name__.split('.')[0]}'\]"):
        HybridTask.load_from_checkpoint(forged(checkpoint, parts__x__module=own, parts__x__args={}))
    path = saved(classifier(parts={"x": {"module": Net}}), checkpoint.parent / "own.ckpt")
    refused(path, "outside the allowed places")
    assert isinstance(HybridTask.load_from_checkpoint(path, trust=[__name__]).built().parts["x"], Net)


class Net(nn.Linear):
    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, 3)


@pytest.mark.parametrize("fact", ["optimizer", "scheduler"])
@pytest.mark.parametrize(
    "spec",
    [
        {"class_path": "subprocess.check_call", "init_args": {"args": ["touch", "pwned"]}},
        {"class_path": "tests.tasks.test_checkpoint.Net", "init_args": {"in_features": 3}},
        "os.system",
        "partial",
        "torch.optim.lr_scheduler.partial",
        "torch.optim.optimizer.functools.partial",
    ],
    ids=str,
)
def test_code_named_by_the_optimizer_of_a_file_does_not_run(fact, spec, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    model = HybridTask.load_from_checkpoint(forged(checkpoint, **{f"settings__{fact}": spec}))
    with pytest.raises(ConfigError, match=r"outside the allowed places|unknown class"):
        trainer().fit(model, data())
    assert not Path("pwned").exists()


@pytest.fixture
def two_towers(tmp_path) -> Path:
    """The checkpoint of a model with a fusion, not trained."""
    model = classifier(parts={name: {"module": "MLP", "input": "x"} for name in ("a", "b")}).build({"x": table()})
    run = trainer()
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "two.ckpt")
    return tmp_path / "two.ckpt"


@pytest.mark.parametrize(
    "options",
    [
        {"options": {"cpp.cxx": [None, "./evil.sh"]}},
        {"backend": "inductor"},
        {"mode": "evil"},
        {"mode": {"cpp.cxx": "./evil.sh"}},
        {"dynamic": "x"},
        {"fullgraph": 1},
        {"speed": True},
        {7: True},
    ],
    ids=str,
)
@pytest.mark.parametrize("part", ["parts__a", "parts__head", "fusion"])
def test_a_file_gives_the_compiler_no_options_that_name_programs(part, options, two_towers):
    path = forged(two_towers, **{f"{part}__compile": options})
    with pytest.raises(ConfigError, match=rf"{part.replace('__', '.')}\.compile: .* comes from a file"):
        HybridTask.load_from_checkpoint(path, trust=["torch"])


@pytest.mark.parametrize(
    "options", [True, {}, {"mode": "reduce-overhead", "dynamic": None, "fullgraph": False}], ids=str
)
def test_a_file_may_say_that_a_part_is_compiled(options, checkpoint):
    part = HybridTask.load_from_checkpoint(forged(checkpoint, parts__x__compile=options)).parts["x"]
    assert part.compile == options


class Payload:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("use", ["rebuild", "fit", "test", "weights"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_code_is_refused_and_does_not_run(use, protocol, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hybrid_lightning": Payload()}, "bad.ckpt", pickle_protocol=protocol)
    if use == "rebuild":
        refused(tmp_path / "bad.ckpt", "refused, because loading it could run code")
    elif use == "weights":
        assert command("fit", "--model.parts.stem.weights", "bad.ckpt") == 2
    else:
        assert command(use, "--ckpt_path", "bad.ckpt") == 2
    assert use == "rebuild" or "could run code" in capsys.readouterr().err
    assert not Path("pwned").exists()
    Path("bare.ckpt").write_bytes(pickle.dumps(Payload()))
    refused(tmp_path / "bare.ckpt", "refused|cannot be read")


@pytest.mark.parametrize("verb", ["fit", "test"])
def test_the_command_line_takes_no_class_from_a_checkpoint(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("fit") == 0
    path = next(Path("runs").rglob("last.ckpt"))
    forged(path, parts__stem__module="subprocess.check_call", parts__stem__args={"args": ["touch", "pwned"]})
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] = {"_class_path": "subprocess.check_call", "args": ["touch", "pwned"]}
    torch.save(content, path)
    assert command(verb, "--ckpt_path", str(path), "--trainer.max_epochs", "2") == 0
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "is cut off or damaged"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.unlink(), "there is no file"),
        (lambda path: torch.save({"state_dict": {}}, path), "was not written by a task"),
        (lambda path: torch.save([1, 2], path), "holds a list"),
        (lambda path: forged(path, version=99), r"has format 99; this program reads 5"),
        (lambda path: forged(path, task="elsewhere.Task"), "'elsewhere.Task'.*Import it first"),
        (lambda path: forged(path, task=["elsewhere"]), "Import it first"),
        (lambda path: forged(path, parts=[1]), "the settings in .* are damaged"),
        (lambda path: forged(path, parts__x=3), "the settings in .* are damaged"),
        (lambda path: forged(path, network=None), r"^checkpoint\.network: the record .* is damaged"),
        (lambda path: forged(path, network={}), "the record of the network lacks this part"),
        (lambda path: forged(path, network__sizes="x"), r"^checkpoint\.network\.sizes: the record .* is damaged"),
        (lambda path: with_state(path, None), "the settings in .* are damaged"),
        (
            lambda path: with_state(path, {"network.parts.x.layer0.0.weight": 3}),
            "the checkpoint is damaged: .* is a int, not a tensor",
        ),
    ],
)
def test_a_file_that_is_no_checkpoint_of_ours_is_told(make, match, checkpoint):
    make(checkpoint)
    with pytest.raises(ConfigError, match=match):
        HybridTask.load_from_checkpoint(checkpoint)


@pytest.mark.parametrize("network", [{}, None, {"sizes": []}])
def test_the_command_line_refuses_a_damaged_record(network, fitted, folder, capsys):
    path = shutil.copy(next(fitted.rglob("last.ckpt")), folder / "x.ckpt")
    forged(path, network=network)
    assert command("test", "--ckpt_path", str(path)) == 2
    assert "the record of the network" in capsys.readouterr().err


def test_a_file_that_states_no_outputs_is_rebuilt_from_its_record(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    del content["hybrid_lightning"]["outputs"]
    model = classifier()
    model.rebuild_as(content["hybrid_lightning"])
    model.build_for(trainer(), lambda: pytest.fail("no example is needed"))
    assert model.built().outputs == 3


# Live modules and subclasses


def test_live_modules_are_asked_for_by_name(tmp_path):
    path = saved(classifier(parts={"x": nn.Linear(4, 3), "y": {"module": "MLP", "input": "x"}}), tmp_path / "x.ckpt")
    with pytest.raises(
        ConfigError, match=r"'x' were live modules.*load_from_checkpoint\(path, parts=\{'x': module\}\)"
    ):
        HybridTask.load_from_checkpoint(path)
    with pytest.raises(ConfigError, match=r"parts: unknown part 'z'.*'x', 'y'"):
        HybridTask.load_from_checkpoint(path, parts={"z": nn.Linear(4, 3)})


def test_a_live_module_that_is_passed_gets_its_weights_back(tmp_path):
    layer = nn.Linear(4, 3)
    path = saved(classifier(parts={"x": layer}), tmp_path / "x.ckpt")
    other = nn.Linear(4, 3)
    HybridTask.load_from_checkpoint(path, parts={"x": other})
    assert torch.equal(other.weight, layer.weight)


def test_a_live_module_of_another_size_is_told(tmp_path):
    path = saved(classifier(parts={"x": nn.Linear(4, 3)}), tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=r"another model.*weight \(5, 4\)"):
        HybridTask.load_from_checkpoint(path, parts={"x": nn.Linear(4, 5)})


class Sharper(HybridClassifier):
    """A user's own task, with an argument of its own."""

    def __init__(self, temperature: float = 0.5, **common) -> None:
        super().__init__(**common)
        self.temperature = temperature

    def predictions(self, outputs):
        return super().predictions(outputs / self.temperature)


def test_a_subclass_is_trained_saved_and_rebuilt(tmp_path):
    part = {"x": {"module": "MLP"}}
    path = saved(Sharper(num_classes=3, parts=part, temperature=0.25), tmp_path / "x.ckpt")
    again = HybridTask.load_from_checkpoint(path)
    assert type(again) is Sharper
    assert again.temperature == 0.25


def test_a_class_rebuilds_only_its_own_kind(checkpoint):
    with pytest.raises(ConfigError, match=r"HybridClassifier', which is not a HybridRegressor\. Call .* of that class"):
        hybrid_lightning.HybridRegressor.load_from_checkpoint(checkpoint)
    assert HybridTask not in concrete_subclasses(HybridTask)


def test_a_subclass_is_found_by_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = {**CONFIG["model"], "class_path": f"{__name__}.Sharper"}
    config = {**CONFIG, "model": {**model, "init_args": {**model["init_args"], "temperature": 2.0}}}
    assert command("fit", config=config) == 0
    assert write(config)


def test_a_rebuilt_model_trains_on(checkpoint):
    model = HybridTask.load_from_checkpoint(checkpoint)
    before = model.built().parts["x"].layer0[0].weight.clone()
    modes = []
    model.register_forward_hook(lambda *_: modes.append({m.training for m in model.built().modules()}))
    trainer(limit_val_batches=0).fit(model, data())
    assert modes == [{True}, {True}]
    assert not torch.equal(model.built().parts["x"].layer0[0].weight, before)


class Sharpest(Sharper):
    """A user's task upon a user's task; it fixes an argument of the one, and has one that only a name collects."""

    def __init__(self, classes: int, *, extra: dict | None = None, **common) -> None:
        super().__init__(num_classes=classes, **common)
        self.extra = extra


def test_arguments_of_every_constructor_reach_the_checkpoint_with_their_defaults(tmp_path):
    model = Sharpest(3, extra={"a": [1, None]}, parts={"x": {"module": "MLP"}}, kind="multiclass", lr=0.25)
    saved_settings = torch.load(saved(model, tmp_path / "x.ckpt"), weights_only=True)["hybrid_lightning"]["settings"]
    own = {"classes": 3, "extra": {"a": [1, None]}, "temperature": 0.5, "kind": "multiclass", "lr": 0.25}
    assert own.items() <= saved_settings.items()
    assert {"weight_decay", "label_smoothing", "rates"} <= saved_settings.keys()
    assert not {"num_classes", "objective", "parts"} & saved_settings.keys(), "it cannot be given again"
    again = Sharpest.load_from_checkpoint(tmp_path / "x.ckpt")
    assert (again.extra, again.temperature, again.settings.lr) == ({"a": [1, None]}, 0.5, 0.25)


class Doubled(HybridClassifier):
    """A user's task that changes what it is given, and takes no other names."""

    def __init__(self, parts, fusion=None, lr: float = 1e-3) -> None:
        super().__init__(num_classes=3, parts=parts, fusion=fusion, lr=lr * 2, class_weights=[1, 2, 3])


class Noted:
    """A mixin with an argument of its own."""

    def __init__(self, *args, note: str = "", **common) -> None:
        super().__init__(*args, **common)
        self.note = note


class WithNote(Noted, HybridClassifier):
    pass


def test_what_a_constructor_changes_or_fixes_is_changed_and_fixed_once_when_it_is_rebuilt(tmp_path):
    model = Doubled({"x": {"module": "MLP"}}, lr=0.5)
    again = Doubled.load_from_checkpoint(saved(model, tmp_path / "x.ckpt"))
    assert (model.settings.lr, again.settings.lr) == (1.0, 1.0)
    assert model.saved_settings() == again.saved_settings() == {"lr": 0.5}


def test_arguments_of_a_mixin_reach_the_checkpoint(tmp_path):
    model = WithNote(note="mine", num_classes=3, parts={"x": {"module": "MLP"}})
    assert WithNote.load_from_checkpoint(saved(model, tmp_path / "x.ckpt")).note == "mine"


def test_an_argument_that_a_checkpoint_could_not_name_is_refused_at_once():
    with pytest.raises(ConfigError, match="Give it by name"):
        WithNote(3, parts={"x": {"module": "MLP"}})


@pytest.mark.parametrize("value", [nn.ReLU(), torch.ones(2), {"inner": [object()]}], ids=["module", "tensor", "object"])
def test_an_argument_of_a_subclass_that_a_checkpoint_cannot_hold_is_refused_at_once(value):
    place = r"model\.extra\.inner" if isinstance(value, dict) else r"model\.extra"
    with pytest.raises(ConfigError, match=rf"^{place}: .*which a checkpoint cannot hold"):
        Sharpest(3, extra=value, parts={"x": {"module": "MLP"}})


def test_a_model_is_copied_with_its_settings():
    model = Sharpest(3, parts={"x": {"module": "MLP"}}).build({"x": table(2)})
    again = copy.deepcopy(model)
    assert again.saved_settings() == model.saved_settings()
    assert torch.equal(again({"x": table()}), model({"x": table()}))


class LateShapes(nn.Module):
    """Gets the shapes of its tensors from the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Growing(nn.Module):
    """Makes a layer when it is first called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "net"):
            self.net = nn.Linear(x.shape[1], 3)
        return self.net(x)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_a_module_that_gets_its_shapes_from_the_first_batch_is_rebuilt_and_resumed(tmp_path):
    run = trainer(max_epochs=1)
    batches = loader({"x": table(), "target": torch.arange(27) % 3})
    model = classifier(parts={"x": LateShapes()})
    run.fit(model, batches)
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = HybridClassifier.load_from_checkpoint(tmp_path / "x.ckpt", parts={"x": LateShapes()})
    batch = {"x": table(5)}
    torch.testing.assert_close(again(batch), model.eval()(batch))
    resumed = classifier(parts={"x": LateShapes()})
    trainer(max_epochs=2).fit(resumed, batches, ckpt_path=tmp_path / "x.ckpt", weights_only=True)


def test_a_module_that_makes_its_layers_when_called_is_refused_before_training():
    with pytest.raises(ConfigError, match=r"Growing makes 'net.weight', 'net.bias' when it is first called"):
        classifier(parts={"x": Growing()}).build({"x": table()})


@pytest.mark.parametrize("shape", [[-1], [2**20, 2**20], ["4"], 4, [True]])
def test_an_impossible_recorded_shape_is_refused(shape):
    with pytest.raises(ConfigError, match="the record of the network is damaged"):
        NetworkRecord.parse({"shapes": {"x": {"net.weight": shape}}})

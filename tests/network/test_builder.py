import pytest
import torch
from torch import nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network import builder
from hybrid_lightning.network.batch import first_samples
from hybrid_lightning.network.builder import FUSION, rebuild
from hybrid_lightning.network.outputs import pooled
from hybrid_lightning.network.part import Part, parse_parts
from hybrid_lightning.network.record import NetworkRecord
from hybrid_lightning.unfreezing.freezing import dry_run
from hybrid_lightning.weights.safe_files import save_weights
from tests.network.towers import build, sizes_of, two_towers


class Named(nn.Module):
    """Reads a dict of tensors as keyword arguments, or two inputs by position."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5)

    def forward(self, values, mask):
        return self.linear(values * mask)


class Restless(nn.Module):
    """Draws random numbers, counts its calls and works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.norm = nn.BatchNorm1d(4).train()
        self.drop = nn.Dropout(0.5).eval()

    def forward(self, x):
        self.calls += 1
        torch.randn(3)
        assert not torch.is_grad_enabled()
        return self.drop(self.norm(x.relu_()))


@pytest.mark.parametrize(
    ("how", "expected"),
    [("mean", lambda x: x.mean((2, 3))), ("max", lambda x: x.amax((2, 3))), ("flatten", lambda x: x.reshape(2, 60))],
)
def test_maps_are_pooled_to_features_and_features_stay(how, expected):
    maps, features = torch.randn(2, 3, 4, 5), torch.randn(2, 7)
    torch.testing.assert_close(pooled(maps, how), expected(maps))
    assert pooled(features, how) is features or torch.equal(pooled(features, how), features)


def test_sizes_are_inferred_along_chains_and_towers():
    network = build(*two_towers())
    assert sizes_of(network) == {
        "stem": {"in_channels": 1},
        "upper": {"in_channels": 4},
        "table": {"in_features": 6},
        "fusion": {"in_features": {"table": 5, "upper": 16}, "shrink_above": 64},
        "head": {"in_features": 128, "out_features": 3},
    }
    assert sorted(network.feeding) == ["table", "upper"]


def test_one_part_needs_no_fusion():
    network = build({"table": "MLP"}, {"table": torch.randn(2, 4)})
    assert list(network.parts) == ["table", "head"]
    assert build({"table": "MLP", "other": "MLP"}, {k: torch.randn(2, 4) for k in ("table", "other")}).parts["fusion"]


def test_a_rebuild_from_the_record_is_the_same_network_with_the_same_groups():
    parts, batch = two_towers()
    network = build(parts, batch)
    rebuilt = rebuild(parse_parts(parts), 3, network.record, trust=())
    assert [n for n, _ in rebuilt.named_parameters()] == [n for n, _ in network.named_parameters()]
    groups, again = network.param_groups(1.0, 0.1), rebuilt.param_groups(1.0, 0.1)
    assert [g["name"] for g in again] == [g["name"] for g in groups]
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.eval()(batch), network.eval()(batch))


def test_a_record_is_plain_data(tmp_path):
    network = build(*two_towers())
    torch.save(network.record.plain(), tmp_path / "record.pt")
    assert NetworkRecord.parse(torch.load(tmp_path / "record.pt", weights_only=True)) == network.record


def test_a_parameter_that_arrives_frozen_is_fixed():
    live = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    live[0].weight.requires_grad_(False)
    network = build({"table": live}, {"table": torch.randn(2, 4)})
    assert [g["name"] for g in network.param_groups(1.0, 0.0) if g["fixed"]] == ["table.0/fixed"]


def test_given_stages_replace_those_of_execution():
    facts = {"module": "MLP", "args": {"hidden": [4, 4, 4]}, "stages": ["layer[01]", "layer2"]}
    network = build({"table": facts}, {"table": torch.randn(2, 4)})
    assert list(network.record.parts["table"].stages) == ["layer[01]", "layer2"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["layer0"], r"no pattern covers 'parts\.table\.layer1\.0\.weight'"),
        (["layer0", "layer1", "layer2"], r"'parts\.table\.layer2' matches no parameter"),
        (["layer*", "layer1"], r"is in two"),
    ],
)
def test_impossible_stages_are_refused_before_an_optimizer_is_made(stages, message):
    with pytest.raises(ConfigError, match=rf"^parts\.table\.stages.*{message}"):
        build({"table": {"module": "MLP", "args": {"hidden": [4, 4]}, "stages": stages}}, {"table": torch.randn(2, 4)})


@pytest.mark.parametrize("given", ["dict", "list"])
def test_a_dict_is_passed_by_name_and_a_list_by_position(given):
    values, mask = torch.randn(2, 4), torch.ones(2, 4)
    batch = {"trace": {"mask": mask, "values": values}} if given == "dict" else {"v": values, "m": mask}
    network = build({"trace": {"module": Named(), "input": None if given == "dict" else ["v", "m"]}}, batch)
    assert torch.equal(network.features(batch)["trace"], network.parts["trace"](values, mask))


def test_the_dry_run_leaves_no_trace():
    module, head, batch = Restless(), nn.Linear(4, 3), {"x": torch.randn(2, 4)}
    given, random_state = batch["x"].clone(), torch.get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    modes = [m.training for m in module.modules()]
    build({"x": module, "head": head}, first_samples(batch))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in module.named_buffers())
    assert torch.equal(batch["x"], given)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_the_dry_run_restores_after_an_error():
    module = Restless()
    with pytest.raises(RuntimeError), dry_run(module):
        module(torch.randn(2, 5))
    assert module.calls == 0
    assert module.norm.training


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_modules_get_their_sizes_in_the_dry_run():
    lazy = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d())
    network = build({"x": lazy}, {"x": torch.randn(2, 4)})
    assert [tuple(p.shape) for p in network.parts["x"].parameters()] == [(5, 4), (5,), (5,), (5,)]
    assert {g["name"] for g in network.param_groups(1.0, 0.0)} >= {"x", "x/no_decay"}


def test_a_factory_may_be_any_dotted_path():
    network = build(
        {"x": {"module": "torch.nn.Linear", "args": {"out_features": 7}}, "head": "torch.nn.Linear"},
        {"x": torch.randn(2, 4)},
    )
    assert sizes_of(network) == {"x": {"in_features": 4}, "head": {"in_features": 7, "out_features": 3}}


def test_a_size_that_is_given_is_not_inferred():
    with pytest.raises(ConfigError, match=r"^model\.parts\.x: MLP fails on its input tensor \(2, 4\) float32: "):
        build({"x": {"module": "MLP", "args": {"in_features": 5}}}, {"x": torch.randn(2, 4)})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"y": "MLP"},
            r"^model\.parts\.y\.input: part 'y' reads 'y', which is neither.*The batch has: 'x'. Set 'input'",
        ),
        ({"x": {"module": "MLP", "input": "head"}}, r"^model\.parts\.x\.input: part 'x' reads 'head'"),
        ({"x": "MLQ"}, r"^model\.parts\.x\.module: unknown module 'MLQ'"),
        ({"x": "torch.relu"}, r"^model\.parts\.x\.args: 'torch\.relu' refuses"),
        ({"x": "collections.OrderedDict"}, r"^model\.parts\.x\.module: .* returns a OrderedDict, not a torch module"),
        (
            {"x": {"module": "MLP", "args": {"hiden": [3]}}},
            r"^model\.parts\.x\.args: unknown argument 'hiden'.*'hidden'",
        ),
        ({"x": {"module": "MLP", "args": {"hidden": 3}}}, r"^model\.parts\.x\.args: 'MLP' refuses .*'hidden': 3\}"),
        ({"x": "torch.nn.Linear"}, r"^model\.parts\.x\.args: 'out_features' must be given"),
        ({"x": {"module": nn.Linear(5, 2)}}, r"^model\.parts\.x: Linear fails on its input tensor \(2, 4\) float32"),
        ({"x": nn.GRU(4, 3)}, r"^model\.parts\.x: choose one of what GRU returns: \(0: tensor \(2, 3\).*'output: 0'"),
        ({"x": {"module": nn.GRU(4, 3), "output": "h"}}, r"^model\.parts\.x\.output: 'h' is not a tensor of what GRU"),
        ({"x": {"module": "MLP", "output": 0}}, r"^model\.parts\.x\.output: 0 has no meaning; MLP returns tensor"),
        ({"x": nn.Flatten(0)}, r"^model\.parts\.x: Flatten returns tensor \(8,\) float32"),
        (
            {"x": nn.Unflatten(0, (1, 2))},
            r"^model\.parts\.x: Unflatten returns tensor \(1, 2, 4\) float32 for 2 samples",
        ),
        ({"x": "MLP", "head": nn.Linear(64, 2)}, r"^model\.parts\.head: the head returns shape \(2, 2\) for 2 samples"),
        ({"x": "MLP", "head": nn.Linear(9, 3)}, r"^model\.parts\.head: Linear fails on its input tensor \(2, 64\)"),
        (
            {"x": {"module": nn.Linear(4, 4), "weights": "no.pt"}},
            r"^model\.parts\.x\.weights: there is no file 'no\.pt'",
        ),
        (
            {"x": {"module": "MLP", "weights": "pretrained"}},
            r"^model\.parts\.x\.weights: MLP brings no pretrained weights",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_its_place(parts, message):
    with pytest.raises(ConfigError, match=message):
        build(parts, {"x": torch.randn(2, 4)})


@pytest.mark.parametrize("live", [False, True])
def test_weights_are_loaded_from_a_path_also_into_a_live_module(live, tmp_path):
    saved = nn.Linear(4, 5)
    save_weights(saved.state_dict(), tmp_path / "w.safetensors")
    module = nn.Linear(4, 5) if live else "torch.nn.Linear"
    facts = {"module": module, "weights": str(tmp_path / "w.safetensors"), "args": {} if live else {"out_features": 5}}
    example = {"x": torch.randn(2, 4)}
    assert torch.equal(build({"x": facts}, example).parts["x"].weight, saved.weight)
    assert not torch.equal(
        build({"x": {**facts, "module": nn.Linear(4, 5), "args": {}}}, example, load=False).parts["x"].weight,
        saved.weight,
    )


def test_a_rebuild_refuses_foreign_code_and_arguments_that_fetch():
    record = {"sizes": {}, "stages": {"x": {"all": ["*"]}, "head": {"all": ["*"]}}}
    for facts, message in (
        (
            {"module": "os.system", "args": {"command": "true"}},
            r"^model\.parts\.x\.module: the file names 'os\.system'",
        ),
        (
            {"module": "torch.nn.Linear", "args": {"in_features": "hub:x"}},
            r"^model\.parts\.x\.args\.in_features: 'hub:x'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            rebuild(parse_parts({"x": facts}), 3, NetworkRecord.parse(record), trust=())


def test_a_fusion_of_ones_own_replaces_the_built_in_one():
    parts, batch = two_towers()
    fusion = Part("ConcatFusion", args={"width": 2}, lr_scale=0.5)
    network = build(parts, batch, fusion=fusion)
    assert sizes_of(network)["head"]["in_features"] == 4
    assert {g["lr"] for g in network.param_groups(1.0, 0.0) if g["part"] == "fusion"} == {0.5}
    assert FUSION.args == {}


def backbone(width: int = 3, pretrained: bool = False) -> nn.Module:
    """A factory in timm's manner: asked for pretrained weights, it brings them."""
    layer = nn.Linear(4, width)
    if pretrained:
        nn.init.constant_(layer.weight, 7.0)
    return layer


def test_a_factory_with_a_pretrained_switch_brings_its_own_weights_except_in_a_rebuild():
    path = f"{__name__}.backbone"
    parts = parse_parts({"x": {"module": path, "weights": "pretrained"}})
    network = builder.build(parts, 2, {"x": torch.ones(2, 4)})
    assert bool((network.parts["x"].weight == 7).all())
    rebuilt = rebuild(parts, 2, network.record, trust=(__name__,))
    assert not bool((rebuilt.parts["x"].weight == 7).any())


def test_maps_of_a_spectrogram_are_pooled_over_time_unless_the_part_says_otherwise():
    batch = {"sound": torch.randn(2, 1, 16, 9), "photo": torch.randn(2, 1, 16, 9)}
    small = {"module": "ConvExtractor", "args": {"channels": [3]}}
    parts = {
        "stem": {**small, "input": "sound"},
        "body": {**small, "input": "stem"},
        "own": {**small, "input": "sound", "pool": "max"},
        "flat": {"module": "torch.nn.Flatten", "input": "sound"},
        "photo": small,
    }
    network = build(parts, batch, inferred={"sound": {"part_pool": "time"}})
    pools = {name: network.record.parts[name].pool for name in network.feeding}
    assert pools == {"own": "max", "flat": "flatten", "photo": "mean", "body": "time"}
    network.eval()
    maps = network.parts["body"](network.parts["stem"](batch["sound"]))
    assert torch.equal(network.features(batch)["body"], maps.mean(-1).flatten(1))


def meta_linear():
    with torch.device("meta"):
        return nn.Linear(4, 4)


def with_meta_buffer():
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    module[1].running_mean = torch.zeros(4, device="meta")
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.compile(nn.Linear(4, 4), backend="eager"), r"torch\.compile has wrapped it.*'compile: true'"),
        (meta_linear, r"'weight', 'bias' lie on the meta device, which holds no values"),
        (with_meta_buffer, r"'1\.running_mean' lie on the meta device"),
    ],
)
def test_a_live_module_that_is_not_ready_is_refused(make, message):
    with pytest.raises(ConfigError, match=r"^model\.parts\.a\.module: " + message):
        builder.build(parse_parts({"a": {"module": make(), "origin": "untrained"}}), 2, {"a": torch.randn(3, 4)})

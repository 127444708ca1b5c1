import torch
from torch import nn

from hybrid_lightning.cache.frozen_parts import boundary, fixed_parts, frozen_parts, live_keys, unread_keys
from hybrid_lightning.network.builder import build
from hybrid_lightning.network.part import parse_parts
from hybrid_lightning.unfreezing.freezing import set_trainable

MLP = {"module": "MLP", "args": {"hidden": [3]}}
PARTS = {
    "stem": {**MLP, "input": "x"},
    "body": {**MLP, "input": "stem"},
    "side": {**MLP, "input": "x"},
    "table": {**MLP, "input": "t"},
}


def network(parts=PARTS, frozen=("stem", "body", "side")):
    made = build(parse_parts(parts), 2, {"x": torch.rand(2, 4), "t": torch.rand(2, 2)}).train()
    for name in frozen:
        set_trainable(made.parts[name].parameters(), False)
        made.parts[name].eval()
    return made


def test_a_part_is_frozen_if_nothing_of_it_trains_and_all_of_it_is_in_eval_mode():
    made = network()
    assert frozen_parts(made, (), {}) == ["stem", "side", "body"]
    about_to_train = set(made.parts["stem"].parameters())
    assert frozen_parts(made, about_to_train, {}) == ["side", "body"]
    modes = {module: True for module in made.parts["side"].modules() if isinstance(module, nn.Linear)}
    assert frozen_parts(made, (), modes) == ["stem", "body"]
    next(made.parts["body"].parameters()).requires_grad_(True)
    assert frozen_parts(made, (), {}) == ["stem", "side"]


def test_statistics_that_move_make_a_part_live():
    for mode in ("train", "recalibrate"):
        made = network({**PARTS, "side": {**PARTS["side"], "batch_norm": mode}})
        assert frozen_parts(made, (), {}) == ["stem", "body"]


def test_only_what_reads_fixed_things_is_fixed():
    made = network()
    assert fixed_parts(made, ["stem", "side", "body"], ()) == ["stem", "side", "body"]
    assert fixed_parts(made, ["side", "body"], ()) == ["side"], "the stem trains"
    assert fixed_parts(made, ["stem", "side", "body", "table"], ("x",)) == ["table"]


def test_the_boundary_is_what_something_else_reads():
    made = network()
    assert boundary(made, ["stem", "body", "side"]) == ["side", "body"]
    assert boundary(made, ["stem", "side"]) == ["stem", "side"]


def test_keys_that_only_cached_parts_read_are_left_out():
    made = network()
    assert unread_keys(made, ["side", "body"]) == {"x"}
    assert unread_keys(made, ["body"]) == set()
    assert live_keys(made, ["body"]) == {"x", "t"}
    assert live_keys(made, ["side", "stem"]) == {"t"}


def test_what_is_kept_stands_for_the_parts():
    made = network().eval()
    batch = {"x": torch.rand(5, 4), "t": torch.rand(5, 2)}
    for parts in (["side", "body"], ["stem"], ["table", "stem", "side"]):
        kept = made.kept_outputs(batch, parts)
        rest = {key: batch[key] for key in live_keys(made, parts)}
        assert torch.equal(made({**rest, "cached": kept}), made(batch))
        assert torch.equal(made({**rest, "cached": kept}), made(batch))

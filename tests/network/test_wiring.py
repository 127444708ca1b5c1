import pytest
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.part import Part, parse_parts
from hybrid_lightning.network.wiring import Wiring


def chain(**inputs: str | list[str] | None) -> dict[str, Part]:
    return parse_parts({name: {"module": "MLP", "input": given} for name, given in inputs.items()})


def test_each_part_comes_after_those_it_reads_and_the_last_ones_feed_the_head():
    parts = chain(top=["stem", "side"], stem="pixels", side=None, alone="image", head=None)
    wiring = Wiring(parts)
    order = wiring.order
    assert sorted(order) == ["alone", "side", "stem", "top"]
    assert max(order.index("stem"), order.index("side")) < order.index("top")
    assert sorted(wiring.feeding) == ["alone", "top"]


def test_a_part_may_read_the_key_of_its_own_name():
    assert Wiring(chain(image="image")).order == ["image"]


@pytest.mark.parametrize("parts", [chain(a="b", b="a"), chain(a="b", b="c", c=["x", "a"], d=None)])
def test_a_circle_is_refused_and_its_parts_are_named(parts):
    with pytest.raises(ConfigError, match=r"^model\.parts: 'a', 'b'.* depend on each other \(a circular dependency\)"):
        Wiring(parts)


def test_what_only_a_cached_part_reads_is_not_needed():
    wiring = Wiring(chain(stem="pixels", top="stem", side="stem", other=None))
    assert wiring.needed(()) == {"stem", "top", "side", "other"}
    assert wiring.needed({"top"}) == {"stem", "top", "side", "other"}
    assert wiring.needed({"top", "side"}) == {"top", "side", "other"}


def test_a_key_that_nothing_provides_is_an_error_with_what_there_is():
    wiring = Wiring(chain(top="stem", stem="pixels"))
    with pytest.raises(ConfigError, match=r"^model\.parts\.stem\.input: part 'stem' reads 'pixels'.* has: 'image'"):
        wiring.inputs("stem", {"image": torch.zeros(2)}, {})


def test_no_gradient_reaches_what_only_blocking_parts_read():
    wiring = Wiring(chain(stem="pixels", top="stem", middle="stem", last="middle"))
    assert wiring.reached_by_gradient(()) == {"stem", "top", "middle", "last"}
    assert wiring.reached_by_gradient({"middle"}) == {"stem", "top", "middle", "last"}
    assert wiring.reached_by_gradient({"last", "top"}) == {"top", "last"}
    assert wiring.reached_by_gradient({"last"}) == {"stem", "top", "last"}

import pytest

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.init.columns import Column
from hybrid_lightning.init.files import Files
from hybrid_lightning.init.pieces import make_pieces, replace_parts


def pieces(kind, shapes=(), rates=(), name="x"):
    return make_pieces([Column(name, kind)], {name: Files(kind, list(shapes), list(rates))})


def test_images_like_those_of_the_weights_get_a_frozen_encoder():
    pytest.importorskip("efficientnet_lite_pytorch")
    [piece] = pieces("image", [(3, 200, 300)])
    assert piece.part == {"module": "EfficientNetLite0", "weights": "pretrained", "unfreeze": "never"}
    assert piece.input == {"image": "x", "size": 128}
    assert "resize: pad" in piece.of_input


def test_without_its_package_images_get_networks_that_are_not_pretrained(monkeypatch):
    monkeypatch.setattr("hybrid_lightning.init.pieces.find_spec", lambda name: None)
    tower, patches = pieces("image", [(1, 200, 300)])
    assert tower.input == {"image": "x", "size": 64, "channels": 1}
    assert patches.part == {"module": "RandomConvolutions2d", "input": "x"}
    assert tower.part == {"module": "ResidualConv2d", "input": "x"}
    assert "timm.create_model" in tower.of_part[1]


def test_tiny_images_get_what_was_measured_on_digits():
    tower, patches = pieces("image", [(1, 28, 28)])
    assert tower.part == {"module": "ConvExtractor", "args": {"channels": [16, 32]}, "pool": "flatten", "input": "x"}
    assert tower.input == {"image": "x", "channels": 1}
    assert patches.beside == "x"


def test_no_part_has_the_name_of_a_key_that_another_part_reads():
    files = {"x": Files("image", [(1, 28, 28)], []), "y": Files("series", [(50, 2)], [])}
    columns = [Column("x_tower", "text"), Column("x", "image"), Column("y", "series")]
    found = make_pieces(columns, files)
    names = [piece.part_name for piece in found]
    assert names == ["x_tower", "x_2_tower", "x_2_patches", "y", "y_wave"]
    assert not set(names) & {piece.part.get("input") for piece in found}


@pytest.mark.parametrize(
    ("kind", "shapes", "rates", "says"),
    [
        ("image", [(3, 20, 40)], [], "40 × 20 pixels"),
        ("image", [(3, 20, 40), (3, 20, 50)], [], "45 × 20 pixels; the middle is read, 'resize: pad' keeps all"),
        ("audio", [(1, 4000)], [8000], "0.5 seconds"),
        ("audio", [(1, 4000), (1, 8000)], [8000, 8000], "0.5 to 1 seconds"),
        ("series", [(50, 2)], [], "50 steps of 2 channels"),
        ("series", [(50, 2), (60, 1)], [], "50 to 60 steps of 2 channels"),
    ],
)
def test_a_comment_says_what_was_seen_of_files(kind, shapes, rates, says):
    assert pieces(kind, shapes, rates)[0].of_input == says


@pytest.mark.parametrize("kind", ["image", "audio", "series", "volume", "array"])
def test_a_comment_claims_nothing_of_files_that_are_not_there(kind):
    assert pieces(kind)[0].of_input.partition(";")[0] == "no file was found to look into"


def test_sounds_keep_their_rate_and_usual_length():
    [piece] = pieces("audio", [(1, 4000), (1, 3900)], [8000, 8000])
    assert piece.input == {"audio": "x", "sample_rate": 8000, "seconds": 0.5, "features": "log_mel"}


def test_series_that_are_too_short_for_convolutions_get_a_transformer():
    assert [piece.part["module"] for piece in pieces("series", [(5, 2)])] == ["SequenceTransformer"]
    kernels, wave = pieces("series", [(50, 2), (60, 2)])
    assert kernels.part["args"] == {"layout": "steps", "length": 60}
    assert wave.input == {"series": "x", "layout": "channels", "length": 60}


def test_large_volumes_are_shrunk():
    [piece] = pieces("volume", [(1, 10, 100, 100)])
    assert piece.input == {"volume": "x", "size": [10, 32, 32], "scale": "standard"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Front Photo", "front_photo"),
        ("1st", "input_1st"),
        ("target", "input_target"),
        ("Größe", "gr_e"),
        ("写真", "input"),
    ],
)
def test_keys_are_names_that_a_batch_can_have(name, key):
    assert pieces("text", name=name)[0].key == key


def test_keys_differ():
    columns = [Column("a b", "text"), Column("a_b", "text"), Column("table", "text"), Column("n", "numeric")]
    assert [piece.key for piece in make_pieces(columns, {})] == ["a_b", "a_b_2", "table", "table_2"]


def test_a_part_is_replaced_by_its_key_or_by_its_kind():
    found = pieces("image", [(1, 20, 20)])
    assert len(found) == 2
    for name in ("x", "image"):
        [piece] = replace_parts(found, {name: "timm:resnet18"})
        assert piece.input == {"image": "x", "size": 224, "channels": 3}
        assert piece.part["args"] == {"model_name": "resnet18"}
        assert piece.part["weights"] == "pretrained"
    [piece] = replace_parts(found, {"image": "ConvExtractor"})
    assert piece.part == {"module": "ConvExtractor"}
    assert replace_parts(found, {"image": "torchvision:resnet18"})[0].part["module"] == "torchvision.models.resnet18"


def test_a_text_model_brings_its_tokenizer():
    [piece] = replace_parts(pieces("text"), {"text": "transformers:bert-base-uncased"})
    assert piece.input == {"text": "x", "tokenizer": "bert-base-uncased"}


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"y": "MLP"}, "--part: unknown part 'y'. .*Possible: 'x', 'text'"),
        ({"x": "MPL"}, "--part: unknown module 'MPL'. Did you mean 'MLP'"),
        ({"x": "tim:resnet18"}, "--part: 'tim:resnet18' is not a model of a library, such as timm:resnet18"),
        ({"x": "timm:"}, "--part: 'timm:' is not a model"),
    ],
)
def test_a_part_that_is_not_there_is_told(wishes, message):
    with pytest.raises(ConfigError, match=message):
        replace_parts(pieces("text"), wishes)

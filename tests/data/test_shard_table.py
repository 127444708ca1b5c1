"""What tar shards hold, as a table; their stored index; and what is refused."""

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from hybrid_lightning.data import shard_index
from hybrid_lightning.data.inputs import parse_inputs
from hybrid_lightning.data.shard_index import INDEX, read_indices, split_name
from hybrid_lightning.data.shard_members import MemberFile
from hybrid_lightning.data.shard_table import expanded, read_shards
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError
from tests.shards import write_members, write_shard


def content(row):
    return {"npy": np.arange(3.0) + row, "cls": row}


@pytest.fixture
def shard(folder):
    write_shard("a.tar", {str(row): content(row) for row in range(3)})
    return Path("a.tar")


def test_a_row_per_sample_and_a_column_per_extension(folder):
    write_shard("s/a.tar", {"x/1": {"seg.PNG": b"0123", "cls": "7", "txt": "wörter\n"}, "x/2": {"cls": "10"}})
    write_shard("s/b.tar", {"x/2": {"json": {"age": 3, "tags": ["a", "b"]}, "cls": "8", "seg.png": b"45"}})
    table = Table.read({"train": "s/a.tar", "test": "s/b.tar"})
    assert table.arrow.to_pydict() == {
        "key": ["x/1", "x/2", "x/2"],
        "shard": ["a.tar", "a.tar", "b.tar"],
        "split": ["train", "train", "test"],
        "seg.png": ["a.tar/x/1.seg.png", None, "b.tar/x/2.seg.png"],
        "cls": [7, 10, 8],
        "txt": ["wörter\n", None, None],
        "json.age": [None, None, 3],
        "json.tags": [None, None, ["a", "b"]],
    }
    assert [table.members["seg.png"].path(row).read_bytes() for row in (0, 2)] == [b"0123", b"45"]


def test_classes_that_are_no_numbers_stay_text(folder):
    write_shard("a.tar", {"1": {"cls": "007"}, "2": {"cls": "3"}})
    assert Table.read("a.tar").arrow["cls"].to_pylist() == ["007", "3"]


def test_folders_hidden_files_and_files_without_extension_are_no_samples(folder):
    write_members("a.tar", [("README", b""), ("._1.npy", b""), ("__keys__.json", b"{}"), ("a/1.npy", b"1")])
    assert Table.read("a.tar").arrow["key"].to_pylist() == ["a/1"]
    assert split_name("a.b/c") == ("a.b/c", "")


def test_a_column_of_several_extensions_takes_the_first_that_a_sample_has(folder):
    write_shard("a.tar", {"1": {"png": b"1"}, "2": {"jpg": b"2"}, "3": {"jpg": b"3", "png": b"4"}, "4": {"cls": 0}})
    found = read_shards("a.tar", ["jpg;png;gif"])
    assert found.arrow["jpg;png;gif"].to_pylist() == ["a.tar/1.png", "a.tar/2.jpg", "a.tar/3.jpg", None]
    assert [found.members["jpg;png;gif"].path(row).read_bytes() for row in range(3)] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{x,y}/{0..1}.tar", ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]),
        ("plain.tar", ["plain.tar"]),
    ],
)
def test_braces_count_with_their_digits_and_list(pattern, names):
    assert expanded(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..9999999}.tar", "{000..999}{000..999}{000..999}.tar", "{5..2}.tar"])
def test_braces_cannot_exhaust_the_memory_or_count_down(pattern):
    with pytest.raises(ConfigError):
        expanded(pattern)


def test_shards_are_read_in_the_order_of_their_names_and_once(folder):
    for name in ("b", "a", "c"):
        write_shard(f"{name}.tar", {"1": {"cls": 1}})
    assert Table.read("{b,*}.tar").arrow["shard"].to_pylist() == ["b.tar", "a.tar", "c.tar"]


def test_headers_are_read_once_and_again_where_a_shard_has_changed(folder, shard, monkeypatch):
    write_shard("b.tar", {"1": {"cls": 1}})
    read = []
    index_of = shard_index.index_of
    monkeypatch.setattr(shard_index, "index_of", lambda path: read.append(path.name) or index_of(path))
    assert len(Table.read("*.tar")) == len(Table.read("*.tar")) == 4
    assert sorted(read) == ["a.tar", "b.tar"]
    write_shard("a.tar", {"new": content(5)})
    assert Table.read("*.tar").arrow["key"].to_pylist() == ["new", "1"]
    assert sorted(read) == ["a.tar", "a.tar", "b.tar"]


@pytest.mark.parametrize("damage", ["bytes", "places", "columns", "elsewhere"])
def test_an_index_that_is_damaged_or_names_other_places_is_made_anew(folder, shard, damage):
    import pyarrow
    import pyarrow.parquet

    wanted = Table.read("a.tar").arrow
    table = pyarrow.parquet.read_table(INDEX)
    if damage == "bytes":
        Path(INDEX).write_bytes(b"PAR1 and then nothing")
    elif damage == "columns":
        pyarrow.parquet.write_table(table.drop_columns(["offset"]), INDEX)
    else:
        name, value = ("shard", "../a.tar") if damage == "elsewhere" else ("offset", 2**40)
        place = table.column_names.index(name)
        kind = table.schema.field(name).type
        changed = table.set_column(place, name, pyarrow.repeat(pyarrow.scalar(value, kind), len(table)))
        pyarrow.parquet.write_table(changed, INDEX)
    assert Table.read("a.tar").arrow == wanted
    assert pyarrow.parquet.read_table(INDEX) == table


def test_shards_in_a_folder_that_cannot_be_written_are_read_all_the_same(folder, shard):
    Path(INDEX).mkdir()
    assert len(Table.read("a.tar")) == 3
    assert sorted(path.name for path in Path().iterdir()) == ["a.tar", INDEX]


def test_a_shard_that_changes_during_a_run_is_an_error_and_not_other_bytes(folder, shard):
    member = Table.read("a.tar").members["npy"].path(1)
    write_shard("a.tar", {str(row): content(row + 7) for row in range(4)})
    with pytest.raises(ValueError, match=r"'a\.tar' has changed since the run began"):
        member.read_bytes()


def test_a_member_is_a_file_for_those_who_need_one_and_leaves_none(folder, shard):
    member = Table.read("a.tar").members["npy"].path(2)
    assert isinstance(member, MemberFile)
    path = Path(os.fspath(member))
    assert path.suffix == ".npy"
    assert np.load(path).tolist() == [2, 3, 4]
    member.close()
    assert not path.exists()


def test_a_name_of_a_member_is_no_path_of_the_file_written_of_it(folder):
    write_shard("a.tar", {"1": {"a\\..\\b" + "c" * 300 + ".npy": b"1"}})
    table = Table.read("a.tar")
    member = table.members[table.columns[2]].path(0)
    assert isinstance(member, MemberFile)
    path = Path(os.fspath(member))
    assert path.read_bytes() == b"1"
    assert path.name.endswith("ccc.npy")
    assert "\\" not in path.name
    member.close()


def test_of_a_large_member_no_more_is_read_than_asked_for(folder, monkeypatch):
    whole = np.random.default_rng(0).bytes(200_000)
    write_shard("a.tar", {"1": {"bin": b"x" * 700}, "2": {"bin": whole}, "3": {"bin": b"y" * 700}})
    member = Table.read("a.tar").members["bin"].path(1)
    read = []
    files = member._files.read
    monkeypatch.setattr(member._files, "read", lambda *place: read.append(place[2]) or files(*place))
    with member.open("rb") as stream:
        assert stream.read(100) == whole[:100]
        assert sum(read) < 20_000
        stream.seek(-50, 2)
        assert stream.read() == whole[-50:]
        stream.seek(0)
        assert stream.read() == member.read_bytes() == whole


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def overwritten(path, place, new):
    whole = bytearray(path.read_bytes())
    whole[place : place + len(new)] = new
    path.write_bytes(whole)


DAMAGES = {
    "cut within a member": (lambda path: cut(path, 600), "it ends within '0.npy'"),
    "cut within a header": (lambda path: cut(path, 1800), "damaged"),
    "cut between samples": (lambda path: cut(path, 2048), "behind '0.cls' there is no end of the archive"),
    "a header overwritten": (
        lambda path: overwritten(path, 2048, b"x" * 512),
        "behind '0.cls' there is something else",
    ),
    "not a tar": (lambda path: path.write_bytes(b"no archive" * 100), "is damaged"),
    "without bytes": (lambda path: path.write_bytes(b""), "is damaged: empty file"),
    "compressed": (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(100)), "compressed with gzip.*Decompress it"),
    "two archives": (lambda path: path.write_bytes(2 * path.read_bytes()), "behind '2.cls' there is something else"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named_with_the_member(folder, shard, damage):
    change, message = DAMAGES[damage]
    change(shard)
    with pytest.raises(ConfigError, match=f"data.path: the shard 'a.tar' .*{message}"):
        Table.read("a.tar")
    assert not Path(INDEX).exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.npy", b"1"), ("1.npy", b"2")], "holds the member '1.npy' twice"),
        ([("1.npy", b"1"), ("2.npy", b"2"), ("1.cls", b"3")], "holds the key '1' twice"),
        ([("README", b"1")], "holds no samples"),
        ([("1.txt", b"\xff\xfe")], "'1.txt' cannot be read as text"),
        ([("1.json", b"[" * 10**5)], "'1.json' cannot be read as text: maximum recursion"),
        ([("1.json", b"[1]")], "'1.json' cannot be read as text: it is not an object"),
        ([("1.txt", b"x" * (2**20 + 1))], "'1.txt' has 1048577 bytes, and a text at most 1048576"),
        ([("1.json", b'{"a": "\\ud800"}')], r"'1\.json' cannot be read as text: .* surrogates not allowed"),
        ([("1.json", b'{"a": 1' + b"0" * 30 + b"}")], r"field 'a' of json cannot be a column: .* of one type\.$"),
        ([("1.key", b"x")], "'key' cannot be an extension"),
        ([("1.json.age", b"x"), ("1.json", b'{"age": 3}')], "'json.age' cannot be an extension"),
    ],
)
def test_members_that_cannot_be_a_row_are_refused(folder, members, message):
    write_members("a.tar", members)
    with pytest.raises(ConfigError, match=message):
        Table.read("a.tar")


def header(name, kind=tarfile.REGTYPE, size=0):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


@pytest.mark.parametrize(
    "headers",
    [
        header("x", tarfile.XHDTYPE, size=2**62),
        header("x", tarfile.GNUTYPE_LONGNAME, size=2**62),
        header("x", tarfile.XHDTYPE) * 3000,
        header("1.png", size=2**62),
        header("1.png", size=-512),
        header("k\udcff.png"),
    ],
)
def test_headers_that_ask_for_too_much_or_are_no_text_are_damage(folder, headers):
    Path("a.tar").write_bytes(headers + bytes(1024))
    with pytest.raises(ConfigError, match=r"the shard 'a\.tar' is damaged"):
        Table.read("a.tar")


def test_a_shard_whose_name_is_a_pattern_can_be_named(folder):
    write_shard("a[1].tar", {"1": {"cls": 1}})
    assert len(Table.read("a[1].tar")) == 1


def test_keys_with_dots_are_told(folder):
    write_members("a.tar", [(f"image.{number}.jpg", b"1") for number in range(1001)])
    with pytest.raises(ConfigError, match=r"1,001 extensions, such as '0\.jpg'.* give each sample a key without dots"):
        Table.read("a.tar")


def test_a_link_is_no_member(folder):
    with tarfile.open("a.tar", "w") as archive:
        info = tarfile.TarInfo("1.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(info)
    with pytest.raises(ConfigError, match=r"'1\.txt' is a link or the like"):
        Table.read("a.tar")


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "npy"])
def test_nothing_is_unpickled(folder, extension):
    write_shard("a.tar", {"1": {extension: pickle.dumps(Bomb())}})
    entry = parse_inputs({"x": {"array": extension}})["x"]
    entry.bind(Table.read("a.tar"))
    with pytest.raises(ConfigError, match=r"it is neither an \.npy nor an \.npz file"):
        entry.read(0, training=False)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("source", ["s3://bucket/a.tar", "pipe:cat a.tar"])
def test_nothing_is_fetched_or_run(source):
    with pytest.raises(ConfigError, match="is not on a file system"):
        read_shards(source)


def test_indices_come_in_the_order_asked_for(folder, shard):
    write_shard("other/b.tar", {"1": {"cls": 1}})
    paths = [Path("other/b.tar"), Path("a.tar")]
    assert [index.path for index in read_indices(paths)] == paths

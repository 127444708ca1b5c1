"""Kinds 1 and 10: tables and configs that become large, or run something."""

import gzip
import json
import os
import socket
from pathlib import Path

import numpy as np
import pyarrow
import yaml
from pyarrow import parquet

from tests.hostile.cases.bombs import limited
from tests.hostile.cases.data import config, config_of, content_of, table
from tests.hostile.harness import Box, case
from tests.small import changed


@limited(10, "manifest", "Parquet of a billion cells of nothing", "more than")
def a_table_of_nothing() -> None:
    names = [f"c{number}" for number in range(1000)]
    part = pyarrow.table(dict.fromkeys(names, pyarrow.nulls(1_000_000)))
    parquet.write_table(part, "m.parquet")
    config(path="m.parquet")


@limited(10, "manifest", "Parquet of one long text in each row", "more than|cannot be read")
def a_table_of_equal_texts() -> None:
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(400_000, np.int32)), pyarrow.array(["x" * 2**14]))
    made = pyarrow.table({"size": np.arange(400_000), "label": text})
    parquet.write_table(made, "m.parquet", store_schema=False)
    config(path="m.parquet")


@limited(10, "manifest", "a gzip that unpacks to gigabytes", "holds more than")
def a_table_of_a_bomb() -> None:
    with gzip.open("m.csv.gz", "wb", 1) as file:
        file.write(b"size,label\n")
        for _ in range(40):
            file.write(b"1,a\n" * 2**22)
    config(path="m.csv.gz")


@limited(10, "manifest", "JSON whose rows each have columns of their own", "more than|columns")
def a_table_of_columns() -> None:
    Path("m.json").write_text(json.dumps([{f"c{row}": 1} for row in range(30_000)]))
    config(path="m.json")


content_of("JSON of brackets", "[" * 100_000, "cannot be read", "m.json")
content_of(
    "JSON of a number of 5000 digits", '[{"size": ' + "9" * 5000 + ', "label": "a"}]', "cannot be read", "m.json"
)
content_of(
    "JSON of cells within cells",
    json.dumps([{"size": {"a": [1]}, "label": "a"}, {"label": "b"}] * 20),
    "size",
    "m.json",
)
content_of("a header of a megabyte", "s" * 2**20 + ",label\n1,a\n", "unknown column")
content_of("a header of 100000 columns", ",".join(f"c{n}" for n in range(100_000)) + "\n", "size|rows")
content_of("a cell of 50 megabytes", "size,label\n" + "9" * 50_000_000 + ",a\n", "a row longer than 16 MiB")
content_of("a Parquet file cut off", b"PAR1" + bytes(100), "cannot be read", "m.parquet")


@case(10, "manifest", "a socket")
def a_manifest_that_is_a_socket(box: Box) -> None:
    place = socket.socket(socket.AF_UNIX)
    place.bind("m.csv")
    config(path="m.csv")
    box.refused("check", "--config", "x.yaml", says="there is no file|it is not a file")


@limited(10, "data.root", "a name of 300 letters", "there is no such file|root", ("check", "fit"))
def data_in_a_root_of_a_long_name() -> None:
    table(file="a.png")
    config({"x": {"image": "file"}}, root="r" * 300)


@limited(10, "split file", "a pipe", "", ("check", "fit"))
def a_split_that_is_a_pipe() -> None:
    os.mkfifo("split.csv")
    table()
    config(split="split.csv")


# Texts within a config, which its parser reads as YAML once more

FLOW = "{" + ", ".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'ha'] * 9)}]" for n in range(27)) + "}"
RUNS = "!!python/object/apply:os.system ['touch ../outside/victim/x']"


def text_within(kind: int, mechanism: str, text: str, key: str) -> None:
    """Registers a text in the place of another value of a config."""

    def run(box: Box) -> None:
        Path("x.yaml").write_text(yaml.safe_dump(changed({key: text})))
        box.refused("plan", "--config", "x.yaml")

    run.__name__ = f"{mechanism} in {key}".replace(" ", "_").replace(".", "_")
    case(kind, f"text within a config, {key}", mechanism, seconds=30)(run)


for each in ("trainer.devices", "trainer.callbacks", "init.parts", "init.optimizer", "data.init_args", "model"):
    text_within(10, "aliases of aliases", FLOW, each)
for each in ("trainer.max_epochs", "init.class_weights", "trainer.plugins"):
    text_within(1, "a tag that runs a program", RUNS, each)
config_of("a tag that runs a program", f"a: {RUNS}", "not valid YAML")
text_within(10, "a list within itself", "&a [*a]", "trainer.devices")

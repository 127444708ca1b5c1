"""``shards``: the data of a config as tar shards."""

import textwrap
from collections.abc import Mapping

import yaml

from hybrid_lightning.cli.building import Setup
from hybrid_lightning.data import ManifestDataModule
from hybrid_lightning.data.shard_writing import write_shards
from hybrid_lightning.errors import ConfigError, check_number, counted, writing


def shards(setup: Setup, output: str, samples: int = 1000) -> None:
    """Writes the samples of each split as tar shards, and prints what the config then says.

    Args:
        setup: The model and its data, of which only these are used.
        output: The folder to write.
        samples: Samples of a shard: so many that it has 100 MB to 1 GB.
    """
    check_number(samples, "--samples", low=1)
    data = setup.data
    if not isinstance(data, ManifestDataModule):
        raise ConfigError(f"shards are written of a ManifestDataModule, and this is a {type(data).__name__}.", "data")
    data.setup("fit")
    with writing(output, "Make room, or write to another place."):
        written = write_shards(data, output, samples)
    for split, count in written.samples.items():
        print(f"{written.patterns[split]}: {counted(count, 'sample')}")
    sampling = data.sampling if data.sampling == "balanced" else {"shards": 4}
    print(f"data in the config:\n{_yaml({'path': written.patterns, 'sampling': sampling})}")
    print(f"in place of columns:\n{_yaml(written.columns)}")


def _yaml(values: Mapping[str, object]) -> str:
    """Lines of a config, indented."""
    return textwrap.indent(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip(), "  ")

"""``shards``: the data of a config as tar shards."""

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
    patterns = ", ".join(f"{split}: {pattern}" for split, pattern in written.patterns.items())
    print(f"data in the config:\n  path: {{{patterns}}}\n  sampling: {{shards: 4}}\nin place of columns:")
    for column, name in written.columns.items():
        print(f"  {column}: {name}")

"""``init``: a first config for a table of one's own."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hybrid_lightning.cli.word_parser import WordParser
from hybrid_lightning.errors import ConfigError, printable, writing
from hybrid_lightning.files import exists, whole_file
from hybrid_lightning.init.suggest import suggest


def init(words: Sequence[str]) -> None:
    """Looks at a table or a folder per class, and writes a first config with a comment on each choice."""
    options = _parser().parse_args(words)
    if options.output is not None and exists(options.output):
        raise ConfigError(f"{options.output!r} is there already, and may hold changes. Name another file.", "--output")
    parts = dict(map(_part, options.part))
    target = options.target[0] if options.target and len(options.target) == 1 else options.target
    found = suggest(options.source, target, options.kind, parts)
    for note in found.notes:
        print(printable(note), file=sys.stderr)
    if options.output is None:
        print(found.text, end="")
    else:
        path = Path(options.output)
        with writing(path, "Make room, or write to another place."):
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                temporary.write_text(found.text, encoding="utf-8")
    config = options.output or "THIS.yaml"
    print(f"next: python -m hybrid_lightning check --config {config}", file=sys.stderr)


def _parser() -> WordParser:
    parser = WordParser("hybrid_lightning init", description=init.__doc__, allow_abbrev=False)
    parser.add_argument(
        "source", metavar="TABLE", help="A table (.csv, .tsv, .parquet, .json, .xlsx), or a folder with one per class."
    )
    parser.add_argument("--target", nargs="+", metavar="COLUMN", help="What is to be predicted.")
    parser.add_argument("--kind", help="Of the target: binary, multiclass, multilabel or regression.")
    parser.add_argument(
        "--part",
        action="append",
        default=[],
        metavar="INPUT=MODULE",
        help="What reads an input, or a kind of input, such as image=timm:resnet18; may be repeated.",
    )
    parser.add_argument("--output", metavar="FILE", help="The file to write; left out: standard output.")
    return parser


def _part(word: str) -> tuple[str, str]:
    """An input and its module."""
    key, equals, module = word.partition("=")
    if not key or not equals or not module:
        raise ConfigError(f"{word!r} is not an input and its module, such as image=timm:resnet18.", "--part")
    return key, module

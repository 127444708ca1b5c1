"""What the command line says of itself: overview, and help of each command. Imports no torch."""

from collections.abc import Iterable
from textwrap import wrap

from hybrid_lightning.cli.commands import COMMANDS, LOOK, PROGRAM, RESULTS, SECTIONS, TRAIN, USE

_WIDTH = 100  # characters of a line
_COLUMN = 28  # where the meaning of an option begins
_NARROW = 14  # the same for sections of a config
_BELOW = " " * 6
_WORDS = "FILE.yaml [FILE.yaml or recipe ...] [--KEY VALUE ...]"
_FIRST_STEPS = ("init", "check", "fit", "report", "predict", "evaluate")
Row = tuple[str, str, str, str]
"""Name, type, default and meaning of an option; the default is empty where an option must be given."""
OF_EVERY_RUN = ("name", "seed_everything")
"""Options of a run that the help of each command lists; fit lists all."""
_CONFIG = """\
A config is a YAML file of four sections, of which model and data are needed, and of options of the run:

  model:
    class_path: HybridClassifier            # or HybridRegressor
    init_args:
      num_classes: 3
      lr: 1.0e-3                            # of new parts; pretrained ones take a tenth of it
      parts:
        image: {module: timm.create_model, args: {model_name: resnet18}, weights: pretrained}
        table: {module: MLP}
  data:
    class_path: ManifestDataModule
    init_args:
      path: samples.csv
      inputs: {image: {image: file, size: 224}, table: {numeric: [age, weight]}}
      target: label
  trainer: {max_epochs: 20}

Files that are given later, recipes and flags go over it key by key; a flag is the path of its key, where init_args may
be left out: --model.parts.image.lr_scale 0.05, --data.batch_size 8, --trainer.max_epochs 5."""
TOPICS = ("config", "part", "model", "data", "trainer", "checkpoint", "recipes", "modules")
"""What `help` explains beside commands, modules and public classes."""


def overview() -> str:
    """The help that is printed without a command."""
    width = max(map(len, COMMANDS))
    lines = [
        "hybrid_lightning trains models that are part pretrained and part new, from one YAML file.",
        "",
        f"usage: {PROGRAM} COMMAND {_WORDS}",
    ]
    for group in (LOOK, TRAIN, USE, RESULTS):
        of_group = {name: row for name, row in COMMANDS.items() if row.group == group}
        if of_group:
            lines += ["", f"{group}:"]
        lines += [f"  {name:<{width}}  {row.description}" for name, row in of_group.items()]
    lines += ["", "what to type, with a config of your own called mine.yaml:"]
    for name in _FIRST_STEPS:
        if name in COMMANDS and COMMANDS[name].examples:
            lines.append(f"  {PROGRAM} {name} {COMMANDS[name].examples[0]}")
    return "\n".join(
        [
            *lines,
            "'COMMAND --help' shows the options of a command and examples, 'help config' what stands in a config,",
            "'help part' the options of a part, 'help part NAME' one of them or those of a module, such as MLP.",
            f"Further topics of 'help': {', '.join(TOPICS[2:])}; or a class, such as L2SP.",
        ]
    )


def help_of(name: str) -> str:
    """What ``COMMAND --help`` prints, within 40 lines."""
    from hybrid_lightning.cli.help_table import OPTIONS  # written by a test, see there

    command = COMMANDS[name]
    takes_config = any(words.startswith("mine.yaml") for words in command.examples)
    lines = [f"{name}: {command.description}", ""]
    lines += [f"usage: {PROGRAM} {name} {_WORDS}", ""] if takes_config else []
    lines.append("examples:")
    lines += [f"  {PROGRAM} {name} {words}" for words in command.examples]
    lines += ["", "options:", *option_lines(OPTIONS.get(name, ()), _COLUMN)]
    if command.has_setup:
        lines += ["", "sections of the config, each key of which is an option, too: --trainer.max_epochs 5"]
        lines += option_lines(_section_rows(), _NARROW)
        lines += ["", f"'{name} --help all' lists every key with its type, '{name} --print_config' their values."]
    elif takes_config:
        lines += ["", "All other options, and the config, are those of fit: 'fit --help'."]
    return "\n".join(lines)


def help_of_config() -> str:
    """What ``help config`` prints."""
    lines = option_lines(_section_rows(), _NARROW)
    return "\n".join([_CONFIG, "", *lines, "", "Options of the run: 'fit --help'. Commands: 'help'."])


def _section_rows() -> list[Row]:
    return [(name, "", "", meaning) for name, meaning in SECTIONS.items()]


def option_lines(rows: Iterable[Row], column: int) -> list[str]:
    """Options in two columns: name and type; meaning and default."""
    lines = []
    for name, kind, default, meaning in rows:
        lines += _in_columns(f"  {name} {kind}".rstrip(), _with_default(meaning, default), column)
    return lines


def option_paragraphs(rows: Iterable[Row]) -> list[str]:
    """Options below each other, with the meaning of each indented."""
    lines = []
    for name, kind, default, meaning in rows:
        lines.append(f"  {name}: {kind}" if kind else f"  {name}")
        lines += wrap(_with_default(meaning, default), _WIDTH, initial_indent=_BELOW, subsequent_indent=_BELOW)
    return lines


def _with_default(meaning: str, default: str) -> str:
    is_told = default in ("", "null") or "if left out" in meaning
    return meaning if is_told else f"{meaning} Default: {default}.".strip()


def _in_columns(left: str, right: str, column: int) -> list[str]:
    """A text right of another one, which gets a line of its own where it is too long."""
    wrapped = wrap(right, _WIDTH - column, break_on_hyphens=False) or [""]
    lines = [f"{'':<{column}}{line}" for line in wrapped]
    if len(left) > column - 2:
        return [left, *lines]
    return [f"{left:<{column}}{wrapped[0]}", *lines[1:]]

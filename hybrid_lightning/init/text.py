"""A config as commented YAML."""

import re
from typing import Any

import yaml

_WIDTH = 100


class _Dumper(yaml.SafeDumper):
    """Quotes what our reader of configs takes for a number, such as 1e3."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class CommentedYaml:
    """Lines of YAML, one after the other: keys with a value in one line, and comments."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def comment(self, depth: int, *lines: str) -> None:
        """Comments of a line each; `depth` counts the sections around them."""
        self.lines += [f"{'  ' * depth}# {in_a_line(line)}" for line in lines]

    def section(self, depth: int, key: str) -> None:
        """A key with the keys below it."""
        self.lines.append(f"{'  ' * depth}{_flow(key)}:")

    def value(self, depth: int, key: str, value: Any, comment: str = "") -> None:
        """A key with its value in the flow style; its comment stands behind it, or before it if it is long."""
        first, *others = f"{_flow(key)}: {_flow(value)}".split("\n")
        is_short = not others and len(first) + len(comment) < _WIDTH
        if comment and not is_short:
            self.comment(depth, comment)
        indent = "  " * depth
        self.lines.append(f"{indent}{first}" + (f"  # {in_a_line(comment)}" if comment and is_short else ""))
        self.lines += [f"{indent}  {line}" for line in others]

    def __str__(self) -> str:
        return "\n".join(self.lines) + "\n"


def _flow(value: Any) -> str:
    """A value in the flow style of YAML, of several lines if it is long."""
    dumped = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=_WIDTH, sort_keys=False, allow_unicode=True
    )
    text: str = dumped.removesuffix("\n").removesuffix("\n...")
    return text


def in_a_line(comment: str) -> str:
    """A comment without what would end it: line ends of any kind, and controls."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in comment)

"""A command that works with a model, its data and a Trainer, from its words to its end."""

import inspect
from collections.abc import Sequence

from hybrid_lightning.cli.building import Setup, build
from hybrid_lightning.cli.commands import COMMANDS
from hybrid_lightning.cli.parser import parse
from hybrid_lightning.cli.tables import refuse_named_file

_WRITTEN = {"output", "plot", "write"}
"""Flags that name a file to write."""


def run_with_setup(words: Sequence[str]) -> Setup:
    """Runs a command whose function takes a `Setup`; gives what it has worked with."""
    parsed = parse(words)
    setup = build(parsed)
    function = COMMANDS[parsed.command].function()
    flags = [name for name in inspect.signature(function).parameters if name != "setup"]
    arguments = {name: setup.options[name] for name in flags}
    if "ckpt_path" in arguments:
        arguments["ckpt_path"] = setup.checkpoint
    try:
        for option in _WRITTEN & arguments.keys():
            if arguments[option] is not None:
                refuse_named_file(arguments[option], setup.data, option)
        function(setup, **arguments)
    finally:
        if setup.continued and setup.continued.lock:
            setup.continued.lock.release()
    return setup

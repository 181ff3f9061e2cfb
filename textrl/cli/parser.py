"""The command line: `textrl {sft,reward,ppo,rloo,dpo,generate,evaluate,collect,demo,...}`.

Every field of a configuration is an option and a key of the YAML file given with --config;
`--print_config` writes such a file. This module imports names and configurations only, so that the
help appears at once; the commands themselves are in `commands.py`. A user's mistake prints one
line on stderr and exits with status 2.
"""

import io
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from textrl import __version__
from textrl.benchmark.config import BenchmarkConfig
from textrl.cli.agent_options import (
    AGENTS,
    AgentRunConfig,
    HeldoutConfig,
    OutsideAgentConfig,
    StatesConfig,
)
from textrl.cli.options import (
    BestOfConfig,
    EnvConfig,
    EvaluateConfig,
    GenerateConfig,
    ModelConfig,
    NormalizeConfig,
    RunConfig,
)
from textrl.cli.push_options import PushConfig
from textrl.cli.report_options import DoctorConfig, ReportConfig
from textrl.cli.words import PlainHelp, in_plain_words, read_plain_integers, with_plain_integers
from textrl.cli.world_options import PlayConfig, ProbeConfig, TasksConfig
from textrl.config import DPOConfig, RewardConfig, SFTConfig
from textrl.demo.config import DemoConfig
from textrl.errors import UserError, did_you_mean
from textrl.feedback.config import BackupConfig, CollectConfig, ExportConfig
from textrl.paths import expanded
from textrl.stopping import Terminated, terminable

COMMANDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "sft": ("train a language model on demonstrations", (ModelConfig, RunConfig, SFTConfig)),
    "reward": (
        "train a reward model on rankings",
        (ModelConfig, NormalizeConfig, RunConfig, RewardConfig),
    ),
    **{
        name: (purpose, (AgentRunConfig, EnvConfig, RunConfig, StatesConfig, HeldoutConfig, *own))
        for name, (purpose, own) in AGENTS.items()
    },
    "train": (
        "train a policy with an agent of your own",
        (OutsideAgentConfig, AgentRunConfig, EnvConfig, RunConfig),
    ),
    "dpo": ("train a policy on preferences", (ModelConfig, RunConfig, DPOConfig)),
    "generate": ("write completions of prompts", (GenerateConfig,)),
    "best_of_n": ("write the best of n completions of each prompt", (BestOfConfig,)),
    "evaluate": ("measure score, KL and length on prompts", (EvaluateConfig,)),
    "benchmark": ("compare agents on one task", (BenchmarkConfig, RunConfig)),
    "tasks": ("list the task ids", (TasksConfig,)),
    "probe": ("find out whether, and where, an agent is broken", (ProbeConfig,)),
    "play": ("play a world, or watch a policy play it", (PlayConfig,)),
    "doctor": ("say what is wrong with a run, or with the machine", (DoctorConfig,)),
    "report": ("write a page about a run, or about several", (ReportConfig,)),
    "push": ("send a trained model to a hub", (PushConfig,)),
    "collect": ("serve a page where people write and rank outputs", (CollectConfig,)),
    "collect-backup": ("copy the labels while labelers work", (BackupConfig,)),
    "export": ("write labels to a file for the trainers", (ExportConfig,)),
    "demo": ("run the whole pipeline on real ratings and write a report", (DemoConfig,)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake prints one line and exits with status 2."""
    configs: list[Any] = []
    began = time.time()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # output is UTF-8 whatever the terminal
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        command, configs = parse(given or ["--help"])
        with terminable():
            _find(command)(*configs)
    except (UserError, OSError) as error:  # OSError: a full disk, a folder without rights
        print(f"textrl: error: {error}", file=sys.stderr)
        if hasattr(error, "__notes__"):
            _say_how_to_go_on(error, given)
        sys.exit(2)
    except (KeyboardInterrupt, Terminated) as stop:
        print("textrl: stopped", file=sys.stderr)
        if any(_holds_state(config, began) for config in configs):
            _say_how_to_go_on(stop, given)
        sys.exit(stop.code if isinstance(stop, Terminated) else 130)


def _say_how_to_go_on(error: BaseException, given: list[str]) -> None:
    """Print what is saved of a run that has ended early, and the command that continues it."""
    for note in getattr(error, "__notes__", ()):
        print(f"textrl: {note}", file=sys.stderr)
    modes = ("--overwrite", "--resume")
    kept = [argument for argument in given if argument not in modes]
    print(f"textrl: continue with: {shlex.join(['textrl', *kept, '--resume'])}", file=sys.stderr)


def _holds_state(config: object, began: float) -> bool:
    """Return whether a run that this command has begun can be continued with --resume.

    Args:
        config: A configuration of the command.
        began: When the command began, in seconds since the epoch: an older config.yaml is that of
            an earlier run, which this command has not touched.
    """
    if not isinstance(config, RunConfig | DemoConfig):
        return False
    folder = expanded(config.output_dir)
    settings = folder / "config.yaml"
    if not settings.exists() or settings.stat().st_mtime < began - 1:
        return False
    states: tuple[str, ...] = ("checkpoints/*/checksums.json", "cells.jsonl")
    if isinstance(config, DemoConfig):
        states = ("*/stage.json", "*/checkpoints/*/checksums.json")
    return any(path for state in states for path in folder.glob(state))


def _find(command: str) -> Callable[..., None]:
    """Return the function of a command; those for labels and worlds need no torch to begin."""
    from textrl.cli import push, report_commands, world_commands
    from textrl.feedback import commands as label_commands

    for light in (label_commands.RUN, world_commands.RUN, report_commands.RUN, push.RUN):
        if command in light:
            return light[command]
    from textrl.cli import commands

    return commands.RUN[command]


def parse(arguments: list[str]) -> tuple[str, list[Any]]:
    """Return the command and its configurations, each checked.

    Raises:
        UserError: an unknown command, key or value; the nearest known name is given.
    """
    parser, known = make_parser()
    if arguments and (name := arguments[0].replace("-", "_")) in COMMANDS:  # online-dpo
        arguments = [name, *arguments[1:]]
    arguments = _named_agent(arguments)
    if arguments[:2] == ["collect", "backup"]:
        arguments = ["collect-backup", *arguments[2:]]
    for command, option in (("probe", "--agent"), ("play", "--world"), ("push", "--model")):
        named = arguments[:1] == [command] and arguments[1:] and not arguments[1].startswith("-")
        arguments = [command, option, *arguments[1:]] if named else arguments
    arguments = _named_runs(arguments)
    first = arguments[0] if arguments else ""
    if first and not first.startswith("-") and first not in COMMANDS:
        hint = did_you_mean(first, COMMANDS)
        raise UserError(f"unknown command {first!r}{hint}; known: {', '.join(COMMANDS)}")
    kinds = [kind for _, needed in COMMANDS.values() for kind in needed]
    arguments = _config_first(arguments)
    given = with_plain_integers([_underscored(argument) for argument in arguments], kinds)
    try:
        chosen = parser.parse_args(given)
    except ArgumentError as error:
        raise UserError(in_plain_words(str(error), known.get(first, list(COMMANDS)))) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the file given with --config is not UTF-8 ({error})") from error
    except (RecursionError, OverflowError) as error:  # a list in itself, a number of 400 digits
        raise UserError(f"an option has a value that cannot be read ({error})") from error
    values = chosen[chosen.subcommand]
    if "--resume" in given and "--overwrite" not in given and "overwrite" in values:
        values.overwrite = False  # of the file: what is typed counts
    return chosen.subcommand, [_build(kind, values) for kind in COMMANDS[chosen.subcommand][1]]


def make_parser() -> tuple[ArgumentParser, dict[str, list[str]]]:
    """Return the parser of all commands and the option names of each."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    read_plain_integers()
    parser = ArgumentParser(
        prog="textrl",
        description="Reinforcement learning from human feedback as a Gymnasium problem.",
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=PlainHelp,
    )
    subcommands = parser.add_subcommands(title="commands", metavar="COMMAND")
    known = {}
    for name, (purpose, kinds) in COMMANDS.items():
        sub = ArgumentParser(
            description=purpose[0].upper() + purpose[1:] + ".",
            exit_on_error=False,
            allow_abbrev=False,
        )
        sub.add_argument("--config", action="config", help="YAML file with any of these options.")
        for kind in kinds:
            flags = {field.name for field in fields(kind) if field.type is bool}
            sub.add_class_arguments(kind, as_group=True, skip=flags)
            for parameter in parse_from_object(kind).params:  # the text under each field
                if parameter.arg_name in flags:
                    option = f"--{parameter.arg_name}"
                    sub.add_argument(option, action="store_true", help=parameter.description)
        subcommands.add_subcommand(name, sub, help=purpose)
        known[name] = ["config", *(field.name for kind in kinds for field in fields(kind))]
    return parser, known


def _named_agent(arguments: list[str]) -> list[str]:
    """Return `ppo --agent rloo ...` as the command `rloo ...`; outside agents become `train`.

    Thus each agent accepts its own options, and any other option is an error.
    """
    names = [argument.partition("=")[0] for argument in arguments]
    if names[:1] not in (["ppo"], ["train"]) or "--agent" not in names:
        return arguments
    place = names.index("--agent")
    given = arguments[place : place + 1 + ("=" not in arguments[place])]
    agent = given[-1].removeprefix("--agent=")
    if agent in AGENTS:
        return [agent, *arguments[1:place], *arguments[place + len(given) :]]
    if ":" in agent:
        return ["train", *arguments[1:]]
    hint = did_you_mean(agent, AGENTS)
    raise UserError(
        f"no agent named {agent!r} to train{hint}; known: {', '.join(AGENTS)}, or yours as "
        f"package.module:Name"
    )


def _named_runs(arguments: list[str]) -> list[str]:
    """Return `report RUN RUN ... -o FILE` with the folders as the option --runs."""
    if arguments[:1] not in (["doctor"], ["report"]):
        return arguments
    runs, rest, takes_value = list[str](), list[str](), False
    for word in arguments[1:]:
        word = "--output" if word == "-o" else word
        if takes_value or word.startswith("-"):
            rest.append(word)
            takes_value = not takes_value and word in ("--output", "--config", "--runs")
        else:
            runs.append(word)
    if "--runs" in rest:  # one folder, without brackets
        place = rest.index("--runs") + 1
        if place < len(rest) and not rest[place].startswith("["):
            rest[place] = json.dumps([rest[place]])
    return [arguments[0], *([f"--runs={json.dumps(runs)}"] if runs else []), *rest]


def _config_first(arguments: list[str]) -> list[str]:
    """Return the arguments with --config first, so that options take precedence over the file."""
    places = [i for i, word in enumerate(arguments) if word.partition("=")[0] == "--config"]
    taken = {j for i in places for j in (i, *([] if "=" in arguments[i] else [i + 1]))}
    files = [word for i, word in enumerate(arguments) if i in taken]
    rest = [word for i, word in enumerate(arguments) if i not in taken]
    return [*rest[:1], *files, *rest[1:]]


def _underscored(argument: str) -> str:
    """Return --output-dir as --output_dir; a value after = is not changed."""
    name, equals, value = argument.partition("=")
    if not name.startswith("--"):
        return argument
    return "--" + name[2:].replace("-", "_") + equals + value


def _build(kind: type, values: Namespace) -> Any:
    return kind(**{field.name: values[field.name] for field in fields(kind)})

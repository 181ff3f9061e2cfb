"""Translation of a user's arguments for the parser, and of messages and texts for the terminal."""

import re
from argparse import Action
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import yaml
from jsonargparse import DefaultHelpFormatter, get_loader, set_loader

from textrl.bounds import bare
from textrl.errors import UserError, did_you_mean

TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "dict": "a mapping",
    "Sequence": "a list such as [1, 2]",
    "NoneType": "nothing",
}
"""The parser's names of types, with plain names for them."""


class PlainHelp(DefaultHelpFormatter):
    """Help that shows the bound of a number in words."""

    def _expand_help(self, action: Action) -> str:
        annotated = r"type: (?:Optional\[)?Annotated\[(.*?), (.*?)\]+"
        return re.sub(annotated, r"type: \1, \2", super()._expand_help(action))


def with_plain_integers(arguments: list[str], kinds: Iterable[type]) -> list[str]:
    """Return arguments with --total_timesteps=1e6 as --total_timesteps=1000000.

    Args:
        arguments: arguments of a command.
        kinds: configurations, whose fields determine which options are whole numbers.
    """
    whole = {
        f"--{field.name}"
        for kind in kinds
        for field in fields(kind)
        if bare(field.type) in (int, int | None)
    }
    result: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in whole and equals:
            argument = f"{name}={_plain(value)}"
        elif result and result[-1] in whole:
            argument = _plain(argument)
        result.append(argument)
    return result


DEEPEST = 100
"""Lists and mappings of an option or a file of options lie in each other at most this deeply."""
LOAD_YAML = get_loader("yaml")
"""The parser's own YAML loader."""


def read_plain_integers() -> None:
    """Make the parser read 1e6 in a YAML file as 1000000, which also works for fractional options.

    A duplicate key is an error, because the parser would silently take the last one. Deep nesting
    is one as well, because the reader's time grows with its square.
    """

    def read(text: str) -> Any:
        depth = 0
        for bracket in re.findall(r"[][{}]", text):
            depth += 1 if bracket in "[{" else -1
            if depth > DEEPEST:
                raise UserError(f"{text[:20]!r}... opens more than {DEEPEST} brackets; flatten it")
        try:
            _refuse_twice(yaml.compose(text, Loader=yaml.SafeLoader))
            return _whole(LOAD_YAML(text))
        except UserError:
            raise
        except (ValueError, TypeError, RecursionError) as error:  # a 13th month, a list as a key
            raise yaml.YAMLError(f"{text[:20]!r}... cannot be read ({error})") from error

    set_loader("yaml", read, (yaml.YAMLError,))


def _refuse_twice(node: yaml.Node | None) -> None:
    """Raise UserError if the mapping of a configuration file has a key twice."""
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue  # the parser reports it
        line = key.start_mark.line + 1
        if key.value in lines:
            raise UserError(
                f"the file given with --config has {key.value!r} in line {lines[key.value]} and "
                f"in line {line}; keep one of them"
            )
        lines[key.value] = line


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(part) for key, part in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: str) -> str:
    """Return 1e6 as 1000000, and any other value unchanged."""
    if not re.fullmatch(r"\d+(\.\d*)?[eE]\+?\d{1,2}", value):
        return value
    return str(int(float(value))) if float(value).is_integer() else value


def in_plain_words(message: str, known: list[str]) -> str:
    """Return the parser's error message as one line, with the nearest known name."""
    line = " ".join(message.split())
    if line.startswith("Unexpected config"):
        return "the file given with --config is no list of options; write `option: value` lines"
    missing = re.search(r'Parser key "config": File does not exist: (.*)$', line)
    if missing is not None:
        return f"the file given with --config is not there: {missing.group(1)}"
    required = re.search(r"the following arguments are required: (.*)$", line)
    if required is not None:
        names = [name.split(".")[-1] for name in required.group(1).split(", ")]
        return f"needed: {', '.join(f'--{name}' for name in names)}"
    quoted = r"(?:Key|[Oo]ption|invalid choice:) ['\"]([\w.-]+)"
    unknown = re.search(quoted, line) or re.search(r"[Uu]nrecognized arguments: -*([\w.-]+)", line)
    if unknown is not None:
        word = unknown.group(1).split(".")[-1]
        if word.lower() in ("true", "false"):
            return f"a flag takes no value such as {word}; leave the flag out for false"
        if "does not accept option" in line and word in known:
            return f"option {word!r} is in a section of the file; write it with no indentation"
        if word in known:
            return f"{word} needs two dashes before it: --{word} VALUE"
        hint = did_you_mean(word.replace("-", "_"), known)
        return f"unknown option {word!r}{hint}; see `textrl COMMAND --help`"
    key = re.search(r'Parser key "([\w.]+)"', line)
    value = re.search(r"(?:Got|Given) value: (.*)$", line)
    expected = re.findall(
        r"Expected an? (?:typing\.Literal\[(.*?)\]|<class '(?:[\w.]+\.)?(\w+)'>)", line
    )
    if key is None or value is None or not expected:
        return line
    names = [name for choices, _ in expected for name in re.findall(r"'(.*?)'", choices)]
    words = [
        f"one of {choices}" if choices else TYPES.get(kind, kind) for choices, kind in expected
    ]
    hint = did_you_mean(value.group(1), names)
    return f"{key.group(1)} is {value.group(1)!r}; expected {' or '.join(words)}{hint}"


def shown(text: str) -> str:
    r"""Return a text for a terminal: what moves a cursor is escaped, line breaks inside it stay.

    >>> shown("higher\n"), shown("a\x1b[2J")
    ('higher', 'a\\x1b[2J')
    """
    printable = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text.rstrip("\n"))
    return "".join(printable)

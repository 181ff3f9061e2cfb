"""The command line: `parser.py` reads it, `commands.py` does the work."""

from textrl.cli.parser import main, parse

__all__ = ["main", "parse"]

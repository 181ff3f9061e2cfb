"""Run the command line as `python -m textrl`."""

from textrl.cli import main

main()

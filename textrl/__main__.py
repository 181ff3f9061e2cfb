"""`python -m textrl`: the command line."""

from textrl.cli import main

main()

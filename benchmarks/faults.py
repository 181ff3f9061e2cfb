"""What can go wrong with a run, done on purpose: how many were tried, survived and lost.

`python benchmarks/faults.py [--subjects kills saves ...] [--quick]` kills runs and goes on with
them, damages their files, fills disks, starts a second process, and gives them rewards and weights
that are not numbers. A fault is survived if the run ends in the same files as an undisturbed one,
or is refused with one line that names the cause. The exit status is 1 if something was lost.
`label_server.py` does the same to the server of `textrl collect`.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from faults_files import full_disks, models, saves, two_processes
from faults_inputs import Inputs
from faults_kills import Outcome, kills
from faults_numbers import not_finite, rewards

Subject = Callable[[Inputs, int, int], Iterator[Outcome]]
SUBJECTS: dict[str, tuple[Subject, int, int]] = {
    "kills": (kills, 80, 6),
    "saves": (saves, 30, 3),
    "models": (models, 30, 6),
    "disks": (full_disks, 10, 2),
    "processes": (two_processes, 3, 1),
    "rewards": (rewards, 100, 6),
    "numbers": (not_finite, 100, 4),
}
"""Each subject, how often it is tried (saves: of each kind of run), and how often with --quick."""


def run(name: str, each: int, inputs: Inputs, seed: int) -> tuple[int, int, int]:
    """Try a subject; print what is lost at once, and return tried, survived and lost."""
    tried = lost = 0
    began = time.monotonic()
    for outcome in SUBJECTS[name][0](inputs, each, seed):
        tried += outcome.tried
        lost += bool(outcome.fault)
        if outcome.fault:
            print(f"  LOST {outcome.run}, {outcome.where}: {outcome.fault}", flush=True)
    seconds = time.monotonic() - began
    print(f"{name:10} {tried:6} {tried - lost:9} {lost:5}   in {seconds:.0f} s", flush=True)
    return tried, tried - lost, lost


def main() -> None:
    """Try the subjects and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", nargs="*", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--quick", action="store_true", help="a few of each, for CI")
    parser.add_argument("--each", type=int, help="how often each subject is tried")
    parser.add_argument("--seed", type=int, default=0, help="of the places where things break")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':10} {'tried':>6} {'survived':>9} {'lost':>5}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        inputs = Inputs(Path(name))
        inputs.write()
        rows = [
            run(
                subject,
                options.each or SUBJECTS[subject][2 if options.quick else 1],
                inputs,
                options.seed,
            )
            for subject in options.subjects
        ]
    tried, survived, lost = (sum(column) for column in zip(*rows, strict=True))
    print(f"{'all':10} {tried:6} {survived:9} {lost:5}")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()

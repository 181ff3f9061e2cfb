"""Try every wrong variant of `mutants.py`: the tests named with it must fail.

    python tests/run_mutants.py            all of them, two at a time
    python tests/run_mutants.py --check    only whether each one can be made
    python tests/run_mutants.py reward     those whose file, test or purpose holds the word

Works in copies of the checkout, so that the checkout itself never changes. The tests must pass
there first: a test that always fails would kill everything.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

# Before torch comes: each fork runs on one thread; pytest's plugins of other packages stay out.
os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

# Those that are not used here are imported for the forks, which then need not import them.
import gymnasium  # noqa: F401
import pytest
import sb3_contrib  # noqa: F401
import stable_baselines3  # noqa: F401
import torch  # noqa: F401
import transformers.trainer  # noqa: F401
from mutants import MUTANTS, ROOT, Mutant, wrong_rows

sys.dont_write_bytecode = True  # a variant of the same size and second would run as the old one
PYTEST = ("-x", "-q", "-m", "not slow and not proof", "-p", "no:cacheprovider")
OUTPUT = "output.txt"
LIMIT = 300
"""Seconds; a variant that hangs is killed by it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Tests to run on the right code, or on a wrong variant of it."""

    test: str
    mutant: Mutant | None = None

    def verdict(self, code: int | None, output: str, seconds: float) -> tuple[bool, str]:
        """Return whether pytest ended as it should, and a line that says so."""
        if self.mutant is None:
            if code == 0:
                return True, f"right code: {self.test} passes in {seconds:.0f} s"
            return False, f"right code: {self.test} FAILS (exit code {code})\n{output[-2000:]}"
        what = f"{self.mutant.file}: {self.mutant.breaks}:"
        if code is None:
            return True, f"{what} killed by the time limit of {LIMIT} s"
        killer = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.M)
        if code == 1 and killer:
            return True, f"{what} killed by {killer[1]} in {seconds:.0f} s"
        return False, f"{what} SURVIVED {self.test} (exit code {code}, {seconds:.0f} s)"


def copy_tree(target: Path) -> None:
    """Copy the checkout's files, those not yet committed too."""
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name, follow_symlinks=False)


def begin(tree: Path, test: str) -> int:
    """Run tests in a fork, which has torch and the other libraries already; return its number."""
    number = os.fork()
    if number:
        return number
    try:
        os.setsid()
        os.chdir(tree)
        output = os.open(tree / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        here = str(Path(__file__).parent)
        sys.path[:] = [str(tree), *(path for path in sys.path if path != here)]
        os.environ["PYTHONPATH"] = str(tree)
        code = int(pytest.main([*PYTEST, *shlex.split(test)]))
        sys.stdout.flush()
        os._exit(code)
    finally:  # whatever happened: never go on as a second runner
        os._exit(70)


def ended(running: dict[int, tuple[Job, Path, float]]) -> tuple[int, int | None]:
    """Wait for a fork; return its number and pytest's exit code, None where time ran out."""
    while True:
        for number, (_, _, began) in running.items():
            if time.monotonic() - began > LIMIT:
                os.killpg(number, signal.SIGKILL)
                os.waitpid(number, 0)
                return number, None
            done, status = os.waitpid(number, os.WNOHANG)
            if done:
                return number, os.waitstatus_to_exitcode(status)
        time.sleep(0.05)


def tried(work: list[Job], trees: list[Path], right: Path) -> int:
    """Run each job in a tree of its own, print a line for each, return how many went well.

    `right` is a copy that no variant is written to: the checkout may be worked on meanwhile.
    """
    left, free, good = list(work), list(trees), 0
    running: dict[int, tuple[Job, Path, float]] = {}
    while left or running:
        while left and free:
            job, tree = left.pop(0), free.pop()
            if job.mutant:
                job.mutant.apply(tree)
            running[begin(tree, job.test)] = (job, tree, time.monotonic())
        number, code = ended(running)
        job, tree, began = running.pop(number)
        if job.mutant:
            shutil.copy(right / job.mutant.file, tree / job.mutant.file)
        well, line = job.verdict(code, (tree / OUTPUT).read_text(), time.monotonic() - began)
        print(line, flush=True)
        good += well
        free.append(tree)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only variants that hold one of these words")
    parser.add_argument("--check", action="store_true", help="only check that each can be made")
    parser.add_argument("--jobs", type=int, default=2, help="variants at a time")
    given = parser.parse_args()
    chosen = [
        mutant
        for mutant in MUTANTS
        if not given.words or any(word in str(vars(mutant)) for word in given.words)
    ]
    wrong = wrong_rows(chosen)
    print("\n".join([*wrong, f"{len(chosen)} mutants, {len(wrong)} cannot be made"]))
    if wrong or given.check:
        return bool(wrong)
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / str(number) for number in range(given.jobs)]
        right = Path(folder) / "right"
        for tree in (right, *trees):
            copy_tree(tree)
        tests = sorted({mutant.test for mutant in chosen})
        if tried([Job(test=test) for test in tests], trees, right) < len(tests):
            return 1
        jobs = [Job(test=mutant.test, mutant=mutant) for mutant in chosen]
        killed = tried(jobs, trees, right)
    print(f"{len(chosen)} mutants, {killed} killed")
    return int(killed < len(chosen))


if __name__ == "__main__":
    sys.exit(main())

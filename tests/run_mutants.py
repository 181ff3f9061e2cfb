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
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent
PYTEST = ("-m", "pytest", "-x", "-q", "-m", "not slow and not proof", "-p", "no:cacheprovider")
LIMIT = 300
"""Seconds; a variant that hangs is killed by it."""


def wrong_rows(mutants: list[Mutant]) -> list[str]:
    """Return what is wrong with the table, a line each: texts that do not occur exactly once."""
    found = []
    for mutant in mutants:
        count = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if count != 1 or mutant.old == mutant.new:
            found.append(f"{mutant.file}: {mutant.breaks}: {mutant.old!r} occurs {count} times")
        if not (ROOT / shlex.split(mutant.test)[0].split("::")[0]).exists():
            found.append(f"{mutant.file}: {mutant.breaks}: there is no {mutant.test}")
    return found


def copy_tree(target: Path) -> None:
    """Copy the checkout's files, those not yet committed too."""
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name, follow_symlinks=False)


def run(tree: Path, test: str) -> tuple[int | None, str, float]:
    """Return pytest's exit code (None: out of time), its output and the seconds it took."""
    began = time.monotonic()
    one_thread = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)}
    try:
        done = subprocess.run(
            (sys.executable, *PYTEST, *shlex.split(test)),
            cwd=tree,
            env=os.environ | one_thread,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
    except subprocess.TimeoutExpired:
        return None, "", time.monotonic() - began
    return done.returncode, done.stdout, time.monotonic() - began


def verdict(tree: Path, mutant: Mutant) -> tuple[bool, str]:
    """Return whether a test failed on this variant, and a line that says so."""
    path = tree / mutant.file
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code, output, seconds = run(tree, mutant.test)
    finally:
        path.write_text(right, encoding="utf-8")
    what = f"{mutant.file}: {mutant.breaks}:"
    if code is None:
        return True, f"{what} killed by the time limit of {LIMIT} s"
    killer = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.M)
    if code == 1 and killer:
        return True, f"{what} killed by {killer[1]} in {seconds:.0f} s"
    return False, f"{what} SURVIVED {mutant.test} (pytest's exit code {code}, {seconds:.0f} s)"


def baseline(tree: Path, test: str) -> tuple[bool, str]:
    """Return whether the tests pass on the right code, and a line that says so."""
    code, output, seconds = run(tree, test)
    if code == 0:
        return True, f"right code: {test} passes in {seconds:.0f} s"
    return False, f"right code: {test} FAILS (pytest's exit code {code})\n{output[-2000:]}"


def tried(work: list, jobs: int, trees: list[Path]) -> list[bool]:
    """Run each (function, what) in a tree of its own, print its line, return the results."""
    free: SimpleQueue[Path] = SimpleQueue()
    for tree in trees:
        free.put(tree)

    def one(item: tuple) -> bool:
        function, what = item
        tree = free.get()
        try:
            good, line = function(tree, what)
        finally:
            free.put(tree)
        print(line, flush=True)
        return good

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, work))


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
        for tree in trees:
            copy_tree(tree)
        tests = sorted({mutant.test for mutant in chosen})
        if not all(tried([(baseline, test) for test in tests], given.jobs, trees)):
            return 1
        killed = sum(tried([(verdict, mutant) for mutant in chosen], given.jobs, trees))
    print(f"{len(chosen)} mutants, {killed} killed")
    return int(killed < len(chosen))


if __name__ == "__main__":
    sys.exit(main())

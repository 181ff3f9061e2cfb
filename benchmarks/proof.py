"""Everything that takes hours, with its results in docs/proof.md: `make proof [STEPS=...]`.

CI holds short forms of what can be short in half an hour; here stands the whole: the demo with
three seeds, the demo on SmolLM2, the long tests, the exact-optimum suite, the mutants, the stock
agents, RL4LMs' protocol, the loop with labelers, the fuzzing, the faults, the label server, the
audits, the peers.
Each step runs in a process of its own, its time limit a guard against hanging. A step that fails is
recorded as failed, and the command exits with 1. Steps that are not asked for keep their old row.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "proof.md"
PYTHON = sys.executable
HEADER = """# What `make proof` showed last

Each row is one step: its commit and day, its minutes on that machine, and the lines that it ended
with. `make proof` runs all steps, which takes hours on two cores; `make proof STEPS="demo suite"`
runs some of them. `benchmarks/proof.py` holds their commands. Earlier results of steps that have
not been run since are in [results.md](results.md) and [speed.md](speed.md).

| step | commit | day | minutes | result |
|---|---|---|---|---|
"""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Commands that run one after another, and how many of their last lines say the result."""

    commands: tuple[tuple[str, ...], ...]
    lines: int
    hours: float = 4.0
    """Longer than this is a failure."""


def demo(preset: str, seeds: range) -> Step:
    """Return the step that runs a demo with some seeds and holds its numbers to their bars."""
    runs = [f"runs/proof-{preset}-{seed}" for seed in seeds]
    make = (PYTHON, "-m", "textrl", "demo", "--preset", preset, "--overwrite")
    return Step(
        commands=(
            *((*make, "--seed", str(seed), "--output_dir", runs[seed]) for seed in seeds),
            (PYTHON, "tests/check_demo.py", preset, *runs),
        ),
        lines=len(seeds) + (len(seeds) > 2),
    )


STEPS = {
    "demo": demo("tiny", range(3)),
    "smollm2": demo("smollm2", range(1)),
    "tests": Step(commands=((PYTHON, "-m", "pytest", "-q", "-m", "proof"),), lines=1),
    "suite": Step(
        commands=((PYTHON, "benchmarks/optimum.py", "--output_dir", "runs/proof-optimum"),),
        lines=3,
    ),
    "mutants": Step(commands=((PYTHON, "tests/run_mutants.py"),), lines=1),
    "agents": Step(
        commands=(
            (PYTHON, "benchmarks/agents.py", "--base", "runs/proof-tiny-0", "--tasks", "reviews"),
        ),
        lines=12,
    ),
    "rl4lms": Step(
        commands=(
            (
                *(PYTHON, "tests/check_example.py", "--seeds", "3", "0.03"),
                "benchmarks/rl4lms_imdb.py",
                *("--base", "runs/proof-tiny-0", "--output", "runs/proof-rl4lms.json"),
            ),
        ),
        lines=3,
    ),
    "loop": Step(
        commands=(
            (
                *(PYTHON, "tests/check_example.py", "0.1", "examples/collect_loop.py"),
                *("--base", "runs/proof-tiny-0", "--output_dir", "runs/proof-loop"),
            ),
        ),
        lines=1,
    ),
    "fuzz": Step(
        commands=(
            (PYTHON, "-m", "pytest", "-q", "tests/fuzz", "--hypothesis-profile=long", "--tb=short"),
        ),
        lines=12,
    ),
    "faults": Step(commands=((PYTHON, "benchmarks/faults.py"),), lines=9, hours=1.5),
    "labels": Step(commands=((PYTHON, "benchmarks/label_server.py"),), lines=5, hours=0.5),
    "security": Step(commands=((PYTHON, "benchmarks/security.py"),), lines=3, hours=0.5),
    "peers": Step(commands=((PYTHON, "benchmarks/throughput.py", "--peer", "trl"),), lines=8),
}


def run(name: str, step: Step) -> tuple[bool, float, str]:
    """Return whether a step passed, its minutes, and what it ended with."""
    began, log = time.monotonic(), ROOT / "runs" / f"proof-{name}.log"
    log.parent.mkdir(exist_ok=True)
    passed = True
    with log.open("w") as file:
        for command in step.commands:
            try:
                done = subprocess.run(
                    command,
                    cwd=ROOT,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=step.hours * 3600,
                    env=os.environ | {"PYTHONUNBUFFERED": "1"},
                )
                passed = done.returncode == 0
            except subprocess.TimeoutExpired:
                passed = False
            if not passed:
                break
    found = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return passed, (time.monotonic() - began) / 60, "<br>".join(found[-step.lines :])


def old_rows() -> dict[str, str]:
    """Return the rows of the page that is there, by step."""
    if not PAGE.exists():
        return {}
    rows = re.findall(r"^(\| ([\w-]+) \| \w.*)$", PAGE.read_text(encoding="utf-8"), re.M)
    return {name: row for row, name in rows}


def main() -> None:
    """Run the steps that are named, or all of them, and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"some of {', '.join(STEPS)}")
    asked = parser.parse_args().steps or list(STEPS)
    if unknown := set(asked) - set(STEPS):
        parser.error(f"no steps {sorted(unknown)}; there are {', '.join(STEPS)}")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    failed = []
    for number, name in enumerate(asked, start=1):
        print(f"[{number}/{len(asked)}] {name} ...", flush=True)
        passed, minutes, said = run(name, STEPS[name])
        failed += [] if passed else [name]
        print(f"    {'passed' if passed else 'FAILED'} in {minutes:.1f} minutes", flush=True)
        day = datetime.now(UTC).date().isoformat()
        result = ("" if passed else "**failed**: ") + said.replace("|", "\\|")
        rows = old_rows() | {name: f"| {name} | {commit} | {day} | {minutes:.0f} | {result} |"}
        missing = "| {} | | | | not run since this page exists |"
        page = HEADER + "".join(f"{rows.get(key, missing.format(key))}\n" for key in STEPS)
        PAGE.write_text(page, encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()

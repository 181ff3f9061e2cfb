"""Run an example that prints "score X before, Y after" and fail unless it learned.

python tests/check_example.py 0.05 examples/torchrl_rollout.py [ARGUMENTS]
python tests/check_example.py --seeds 3 0.05 benchmarks/rl4lms_imdb.py [ARGUMENTS]   the median of 3
"""

import re
import statistics
import subprocess
import sys


def gain(script: str, arguments: list[str]) -> float:
    """Run the script with this interpreter, print what it says, and return how far it came."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    found = re.search(r"score (\S+) before, (\S+) after", done.stdout)
    if done.returncode or found is None:
        sys.exit(f"{script} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    print(f"{script}: {found.group(0)}", flush=True)
    return float(found.group(2)) - float(found.group(1))


def main(given: list[str]) -> None:
    """Hold the gain, or the median of several seeds' gains, to its bar."""
    if given[0] == "--seeds":
        seeds, given = range(int(given[1])), given[2:]
        runs = [[*given[2:], "--seed", str(seed)] for seed in seeds]
    else:
        runs = [given[2:]]
    least, script = float(given[0]), given[1]
    median = statistics.median(gain(script, arguments) for arguments in runs)
    if not median >= least:
        sys.exit(f"{script} gained {median:.3f}; expected at least {least}")


if __name__ == "__main__":
    main(sys.argv[1:])

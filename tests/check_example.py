"""Run an example that prints "score X before, Y after" and fail unless it learned.

python tests/check_example.py 0.05 examples/torchrl_rollout.py [ARGUMENTS]
"""

import re
import subprocess
import sys


def main(least_gain: float, script: str, arguments: list[str]) -> None:
    """Run the script with this interpreter."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    found = re.search(r"score (\S+) before, (\S+) after", done.stdout)
    if done.returncode or found is None:
        sys.exit(f"{script} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    gain = float(found.group(2)) - float(found.group(1))
    print(f"{script}: {found.group(0)}")
    if not gain >= least_gain:
        sys.exit(f"{script} gained {gain:.3f}; expected at least {least_gain}")


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2], sys.argv[3:])

"""Run an example that prints "score X before, Y after" and fail unless it learned.

    python tests/check_example.py examples/torchrl_rollout.py 0.05
"""

import re
import subprocess
import sys


def main(script: str, least_gain: float) -> None:
    """Run the script with this interpreter."""
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    found = re.search(r"score (\S+) before, (\S+) after", done.stdout)
    if done.returncode or found is None:
        sys.exit(f"{script} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    gain = float(found.group(2)) - float(found.group(1))
    print(f"{script}: {found.group(0)}")
    if not gain >= least_gain:
        sys.exit(f"{script} gained {gain:.3f}; expected at least {least_gain}")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

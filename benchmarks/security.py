"""Two audits: bandit on our code, and pip-audit on the packages that are installed beside it.

    python benchmarks/security.py

bandit's exceptions are in `pyproject.toml` and at their lines; SECURITY.md argues them. Where the
service of known vulnerabilities is out of reach, that is said, as nothing was audited then. The
exit status is 1 where either audit finds something.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUT_OF_REACH = "pip-audit: could not reach the advisory service"


def code() -> tuple[bool, str]:
    """Return whether bandit finds nothing in our code, and what to print."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bandit", "-q", "-r", "textrl", "agents", "envs"),
            *("-c", "pyproject.toml", "-f", "json"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    try:
        found = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        return False, f"bandit did not run: {done.stderr.strip()[-300:]}"
    lines = [f"{one['filename']}:{one['line_number']}: {one['issue_text']}" for one in found]
    return not found, "\n".join([*lines, f"bandit: {len(found)} findings"])


def packages() -> tuple[bool, str]:
    """Return whether pip-audit finds nothing in what is installed, and what to print.

    Where the service answers for no package, nothing was audited, whatever the status is.
    """
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off"]
    try:
        done = subprocess.run([*command, "-f", "json"], capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return True, OUT_OF_REACH
    if "No module named" in done.stderr:
        return False, "pip-audit did not run: pip install 'textrl-gym[audit]'"
    try:
        listed = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return True, f"{OUT_OF_REACH} ({done.stderr.strip().splitlines()[-1:]})"
    audited = [one for one in listed if "skip_reason" not in one]
    if not audited:
        return True, f"{OUT_OF_REACH}: it answered for none of {len(listed)} packages"
    lines = [
        f"{one['name']} {one['version']}: {wrong['id']}"
        for one in audited
        for wrong in one["vulns"]
    ]
    said = f"pip-audit: {len(lines)} findings in {len(audited)} of {len(listed)} packages"
    return not lines, "\n".join([*lines, said])


def main() -> None:
    """Run both audits and print what they say."""
    results = [code(), packages()]
    for _, said in results:
        print(said)
    sys.exit(not all(passed for passed, _ in results))


if __name__ == "__main__":
    main()

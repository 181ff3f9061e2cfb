"""What a run ran on: versions, cores, threads, device; kept beside its metrics."""

import functools
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from textrl.errors import hide_password

PACKAGES = (
    *("textrl-gym", "torch", "transformers", "gymnasium", "stable-baselines3", "numpy"),
    *("accelerate", "safetensors", "peft", "datasets", "tensorboard"),
)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python, textrl and the packages that matter, where they are there."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def usable_cores() -> float:
    """Return the number of cores that this process may use, after affinity and control groups."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = float(len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1)
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if limit == "max" else min(cores, int(limit) / int(period))


@functools.cache
def commit() -> str | None:
    """Return the commit of the checkout that textrl is imported from; None for a package."""
    folder = Path(__file__).resolve().parent
    try:
        asked = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def machine_record() -> dict[str, Any]:
    """Return what machine.json says of this process."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
        "versions": versions(),
        "commit": commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _command() -> str:
    """Return the command line of this process, without passwords."""
    program = Path(sys.argv[0]).name.replace("__main__.py", "textrl")  # python -m textrl
    words = []
    for word in (program, *sys.argv[1:]):
        option, equals, value = word.partition("=")
        is_option = option.startswith("--") and bool(equals)
        words.append(f"{option}={hide_password(value)}" if is_option else hide_password(word))
    return shlex.join(words)


@functools.cache
def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def machine_text() -> str:
    """Return `machine_record` as the text of machine.json."""
    return json.dumps(machine_record(), indent=1) + "\n"

"""`textrl doctor` without a run: what is wrong with the machine or with the installation."""

import importlib
import os
import shutil
from importlib.metadata import packages_distributions
from pathlib import Path

import torch

from textrl.machine import commit, processor, usable_cores, versions
from textrl.precision import has_bfloat16_units

LOW_DISK = 5.0
"""Gigabytes that should be free, for saves."""


def look() -> tuple[list[str], list[str]]:
    """Return facts about this machine and what is wrong with it, a line each."""
    cores, threads = usable_cores(), torch.get_num_threads()
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    cuda = torch.cuda.is_available()
    units = has_bfloat16_units(torch.device("cuda" if cuda else "cpu"))
    where = Path(importlib.import_module("textrl").__file__ or "").parent
    facts = [
        "versions: " + ", ".join(f"{name} {found}" for name, found in versions().items()),
        f"textrl: {where}, commit {commit() or 'unknown (a package)'}",
        f"processor: {processor()}, {cores:g} usable cores, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        f"threads: {threads} (OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')})",
        f"allocator: {_allocator()}",
        f"bfloat16: {'there are units for it' if units else 'no units; float32 is faster'}",
        f"compiler: {shutil.which('c++') or 'none, which torch.compile needs'}",
        f"GPU: {torch.cuda.get_device_name() if cuda else 'none'}",
        f"disk: {free:.1f} GB free in {Path.cwd()}",
    ]
    return facts, _warnings(cores, threads, free)


def _warnings(cores: float, threads: int, free: float) -> list[str]:
    found = []
    owners = sorted(set(packages_distributions().get("textrl", [])))
    if len(owners) > 1:
        found.append(
            f"{' and '.join(owners)} both own the package textrl; uninstall one of them with pip"
        )
    if threads > cores:
        found.append(
            f"{threads} threads on {cores:g} cores wait for one another; set "
            f"OMP_NUM_THREADS={max(1, int(cores))}"
        )
    if free < LOW_DISK:
        found.append(f"only {free:.1f} GB of disk are free; a save may not fit")
    return found


def _allocator() -> str:
    """Return the memory allocator that the process was started with."""
    loaded = os.environ.get("LD_PRELOAD", "")
    known = [name for name in ("jemalloc", "tcmalloc", "mimalloc") if name in loaded]
    return known[0] if known else "the system's"

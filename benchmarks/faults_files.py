"""Files that are torn, altered or gone, disks that are full, and two processes in one folder."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from crash import kill_at
from faults_inputs import Inputs
from faults_kills import Outcome, Run, in_child, one_line, snapshot

from textrl import cli

DAMAGES = ("half", "empty", "flipped", "deleted")
STATES = ("sft", "ppo separate", "online_dpo")
"""The runs whose saves are damaged."""


def damage(file: Path, how: str, randomness: random.Random) -> None:
    """Damage a file as a crash, a bad disk or a clumsy hand does."""
    content = file.read_bytes()
    if how == "deleted":
        file.unlink()
    elif how == "half":
        file.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    else:
        place = randomness.randrange(max(1, len(content)))
        flipped = bytes([content[place] ^ 1 << randomness.randrange(8)]) if content else b"x"
        file.write_bytes(content[:place] + flipped + content[place + 1 :])


def kept_files(folder: Path) -> list[Path]:
    """Return the files of a run that a later command reads."""
    skipped = (".lock", ".held_by.json", "machine.json", "README.md")
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in skipped and "tfevents" not in path.name
    ]


def half_done(run: Run, inputs: Inputs, folder: Path, log: Path) -> None:
    """Leave a run that was killed after its second save at the earliest."""

    def doomed() -> None:
        kill_at(folder, 100)
        run.work(inputs, folder, "")

    status, _ = in_child(doomed, log)
    assert status == -9, log.read_text()
    assert list(folder.glob("checkpoints/0*")), "there is no save yet"


def saves(inputs: Inputs, each: int, seed: int) -> Iterator[Outcome]:
    """Damage a file of a killed run and go on: the file is named, or the end is the same."""
    randomness = random.Random(seed)
    for kind in STATES:
        run = Run(kind=kind, python=False, lora=False)
        place = inputs.folder / f"damaged {kind}"
        place.mkdir()
        log, straight = place / "log", place / "straight"
        in_child(lambda run=run, straight=straight: run.work(inputs, straight, ""), log)
        half_done(run, inputs, place / "half", log)
        expected = snapshot(straight)
        cases = [(f, how) for f in kept_files(place / "half") for how in DAMAGES]
        for file, how in randomness.sample(cases, min(each, len(cases))):
            name, folder = str(file.relative_to(place / "half")), place / "run"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(place / "half", folder)
            damage(folder / name, how, randomness)
            status, _ = in_child(lambda run=run, f=folder: run.work(inputs, f, "resume"), log)
            fault = ""
            if status == 0:
                now = snapshot(folder)
                fault = "" if now == expected else "another end, without a word"
            elif not one_line(status, log, Path(name).name):
                fault = f"status {status}: {log.read_text()[-200:]}"
            yield Outcome(run=f"{kind}, save", where=f"{name} {how}", fault=fault)


def models(inputs: Inputs, each: int, seed: int) -> Iterator[Outcome]:
    """Damage a file of a trained model and use it: the file is named, or the texts are the same."""
    randomness = random.Random(seed)
    run = Run(kind="rloo", python=False, lora=False)
    place = inputs.folder / "damaged model"
    place.mkdir()
    log, whole, output = place / "log", place / "whole", place / "texts.jsonl"
    in_child(lambda: run.work(inputs, whole, ""), log)

    def generate(folder: Path) -> None:
        os.chdir(inputs.folder)
        options = {"model": folder, "prompts": "prompts.jsonl", "output": output}
        cli.main(["generate", *(f"--{k}={v}" for k, v in options.items()), "--seed=1"])

    status, _ = in_child(lambda: generate(whole), log)
    assert status == 0, log.read_text()
    expected = output.read_bytes()
    cases = [(f, how) for f in kept_files(whole) for how in DAMAGES]
    for file, how in randomness.sample(cases, min(each, len(cases))):
        folder = place / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        name = str(file.relative_to(whole))
        damage(folder / name, how, randomness)
        output.unlink(missing_ok=True)
        status, _ = in_child(lambda folder=folder: generate(folder), log)
        fault = ""
        if status == 0:
            fault = "" if output.read_bytes() == expected else "other texts, without a word"
        elif not (one_line(status, log, Path(name).name) or one_line(status, log, str(folder))):
            fault = f"status {status}: {log.read_text()[-200:]}"
        yield Outcome(run="trained model", where=f"{name} {how}", fault=fault)


def full_disks(inputs: Inputs, each: int, seed: int) -> Iterator[Outcome]:
    """Train on a disk that fills up, make room, and go on to the same end."""
    randomness = random.Random(seed)
    for number in range(each):
        kind = STATES[number % len(STATES)]
        run = Run(kind=kind, python=False, lora=False)
        place = inputs.folder / f"full {number}"
        disk, log = place / "disk", place / "log"
        disk.mkdir(parents=True)
        straight = inputs.folder / f"damaged {kind}" / "straight"
        if not straight.exists():
            in_child(lambda run=run, straight=straight: run.work(inputs, straight, ""), log)
        kilobytes = randomness.randrange(40, 1400)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            yield Outcome(run="full disk", where="-", fault="", tried=False)
            return
        try:
            folder = disk / "run"
            status, _ = in_child(lambda run=run, f=folder: run.work(inputs, f, ""), log)
            fault = "" if status == 0 or one_line(status, log, "") else log.read_text()[-300:]
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            for how in ("resume", "", "overwrite") if status and not fault else ():
                status, _ = in_child(lambda run=run, f=folder, h=how: run.work(inputs, f, h), log)
                if status == 0:
                    break
                fault = f"--{how}: {log.read_text()[-300:]}"
            if status == 0:
                fault = "" if snapshot(folder) == snapshot(straight) else "another end"
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
        yield Outcome(run=f"full disk, {kind}", where=f"{kilobytes} kB", fault=fault)


def two_processes(inputs: Inputs, each: int, seed: int) -> Iterator[Outcome]:
    """Start a second process in the folder of a live run: it is refused, and the first ends."""
    run = Run(kind="sft", python=False, lora=False)
    for how in ("resume", "overwrite", "")[:each]:
        place = inputs.folder / f"two {how}"
        place.mkdir()
        folder, log = place / "run", place / "log"
        straight = place / "straight"
        in_child(lambda straight=straight: run.work(inputs, straight, ""), log)
        first = os.fork()
        if first == 0:
            with (place / "first").open("w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            run.work(inputs, folder, "")
            os._exit(0)
        deadline = time.monotonic() + 60
        while not (folder / "checkpoints" / "latest").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(first, signal.SIGSTOP)
        status, _ = in_child(lambda f=folder, h=how: run.work(inputs, f, h), log)
        refused = one_line(status, log, str(first) if how else "")
        os.kill(first, signal.SIGCONT)
        _, raw = os.waitpid(first, 0)
        fault = "" if refused else f"status {status}: {log.read_text()[-200:]}"
        if os.waitstatus_to_exitcode(raw) or snapshot(folder) != snapshot(straight):
            fault += " the first was disturbed"
        yield Outcome(run="two processes", where=f"--{how}" if how else "a new run", fault=fault)

"""Processes of `throughput_worker.py` that train a block of steps in turn, ours and the peer's."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("textrl", "trl")
WORKER = Path(__file__).with_name("throughput_worker.py")
Job = dict[str, Any]


class Worker:
    """A process that trains a block of steps when it is told to."""

    def __init__(self, python: Path, job: Job, folder: Path) -> None:
        """Start it; `extra_seconds` is what it computes once an epoch, before the first step."""
        folder.mkdir(parents=True, exist_ok=True)
        if "output" in job:
            job = job | {"output": str(Path(job["output"]) / job["library"])}
        path = folder / f"{job['library']}.json"
        path.write_text(json.dumps(job))
        self._log = path.with_suffix(".log").open("w")
        environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"])}
        environment |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        self._process = subprocess.Popen(
            [str(python), str(WORKER), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.extra_seconds: float = self._read()["extra_seconds"]

    def turn(self) -> dict[str, Any]:
        """Run a block and return its numbers."""
        self._say("block")
        return self._read()

    def finish(self) -> None:
        """Let it run to its end."""
        self._say("finish")
        self._process.wait()

    def stop(self) -> None:
        """Stop it where it is."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended; see {self._log.name}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def peer_python(folder: Path, version: str) -> Path:
    """Return the Python of an environment with this TRL, made if need be."""
    environment = folder / f"trl-{version}"
    python = environment / "bin" / "python"
    if not (environment / "ready").exists():
        print(f"installing TRL {version} into {environment}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [python, "-m", "pip", "install", "-q"]
        torch_version = torch.__version__.partition("+")[0]
        subprocess.run([*pip, f"torch=={torch_version}"], check=True)
        subprocess.run([*pip, f"trl=={version}"], check=True)
        (environment / "ready").touch()
    return python


def start_workers(python: Path, job: Job, folder: Path) -> list[Worker]:
    """Return our worker and the peer's, ready for their first block."""
    pythons = (Path(sys.executable), python)
    return [
        Worker(python, job | {"library": library}, folder)
        for library, python in zip(LIBRARIES, pythons, strict=True)
    ]

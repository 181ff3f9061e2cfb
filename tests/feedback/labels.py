"""What the tests of feedback share."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from textrl.labels.tasks import NewTask


def or_fail(reason: str) -> None:
    """Skip with a reason; in CI, where everything must be there, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def task(name: str, outputs: int = 4) -> NewTask:
    texts = [f"{name} output {index}" for index in range(outputs)]
    return NewTask(prompt=f"{name} prompt", outputs=texts, source={"file": "t"}, columns={})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Served:
    """A running `textrl collect`, and the links that it printed."""

    def __init__(self, folder: Path, *arguments: str, port: int = 0) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "textrl", "collect", f"--port={port}", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.printed, self.links = "", {}
        for line in self.process.stdout:
            self.printed += line
            if found := re.match(r" *(\S+): (http\S+#token=\S+)$", line):
                self.links[found[1]] = found[2]
            if line.startswith("Links are shown"):
                break

    @property
    def port(self) -> int:
        return int(self.links["lead"].split("/")[2].rsplit(":", 1)[1])

    def client(self, name: str) -> httpx2.Client:
        """Return an HTTP client with a labeler's token."""
        page, token = self.links[name].split("#token=")
        base = "/".join(page.split("/")[:3])
        return httpx2.Client(
            base_url=base, headers={"authorization": f"Bearer {token}"}, timeout=30
        )

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.communicate(timeout=30)

    def kill(self) -> None:
        """SIGKILL: the process has no chance to tidy up."""
        self.process.kill()
        self.process.communicate(timeout=30)

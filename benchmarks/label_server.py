"""How fast `textrl collect` is when it is full: 10,000 tasks, 50,000 answers, 16 labelers at work.

`python benchmarks/label_server.py` fills a database, starts the real server on it, lets labelers
answer over HTTP, and opens the lead's page beside them. It prints the medians of the next task and
of the lead's page, the server's memory, and what 200 slow connections change. The exit status is 1
if a number misses its bar.
"""

import argparse
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from textrl.labels import lead
from textrl.labels.store import Store
from textrl.labels.tables import Answer, Audit, Task, writing
from textrl.labels.tasks import NewTask

TASKS, ANSWERS, LABELERS, SLOW = 10_000, 50_000, 16, 200
NEXT_TASK, LEAD_PAGE, MEMORY = 0.050, 0.500, 300.0
"""The bars: seconds at the median, seconds at the median, MB at the peak."""
LEAD_PATHS = ("overview", "disagreements", "tasks?limit=50")
"""What the lead's page asks for at each refresh."""


def fill(url: str) -> None:
    """Store the tasks, and the answers of labelers who worked before."""
    store = Store(url, create=True)
    randomness, now = random.Random(0), time.time()
    words = "a review of a film that was long and slow but had good actors".split()  # noqa: SIM905  # shorter

    def text() -> str:
        return " ".join(randomness.choices(words, k=40))

    each = ANSWERS // TASKS
    tasks = [
        NewTask(prompt=text(), outputs=[text() for _ in range(4)], source={"line": i}, columns={})
        for i in range(TASKS)
    ]
    store.add_tasks(tasks, overlap=each + 1)
    for number in range(each):
        lead.add_labeler(store, f"before{number}")
    people = {person.name: person.id for person in lead.labelers(store)}
    rows = [
        {
            "task_id": task,
            "labeler_id": people[f"before{number}"],
            "ranks": randomness.sample(range(4), 4),
            "flags": [],
            "shown_order": [0, 1, 2, 3],
            "seconds": randomness.uniform(5, 60),
            "revision": 1,
            "created_at": now,
            "updated_at": now,
        }
        for task in range(1, TASKS + 1)
        for number in range(each)
    ]
    notes = [
        {"at": now, "action": "answer", "labeler_id": row["labeler_id"], "task_id": row["task_id"]}
        for row in rows
    ]
    with writing(store.engine) as session:
        session.execute(insert(Answer), rows)
        session.execute(insert(Audit), [note | {"body": {}} for note in notes])
        session.query(Task).update({Task.done: each})
        session.commit()
    with Session(store.engine) as session:
        assert session.query(Answer).count() == TASKS * each
    store.close()


class Server:
    """A running `textrl collect`."""

    def __init__(self, url: str, folder: Path) -> None:
        names = ",".join(f"labeler{number}" for number in range(LABELERS))
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "textrl", "collect", f"--database={url}"),
                *("--port=0", f"--labelers={names}"),
            ],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.tokens: dict[str, str] = {}
        self.base = ""
        for line in self.process.stdout:
            if found := re.match(r" *(\S+): (http://[^/]+)/\S*#token=(\S+)$", line):
                self.base, self.tokens[found[1]] = found[2], found[3]
            if line.startswith("Links are shown"):
                break

    def ask(self, name: str, method: str, path: str, body: Any = None) -> Any:
        """Send a request as somebody; return the answer."""
        request = urllib.request.Request(
            f"{self.base}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "authorization": f"Bearer {self.tokens[name]}",
                "content-type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def peak_mb(self) -> float:
        """Return the most memory that the server has used."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        self.process.wait(30)


@dataclass
class Work:
    """What labelers and a lead do beside one another, and how long each request took."""

    server: Server
    pause: float
    """Mean seconds that a labeler looks at a task."""
    stopped: threading.Event = field(default_factory=threading.Event)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"next": [], "page": []})
    answers: int = 0

    def labeler(self, number: int) -> None:
        """Claim and answer tasks until the work is stopped."""
        name, randomness = f"labeler{number}", random.Random(number)
        while not self.stopped.wait(randomness.uniform(0, 2 * self.pause)):
            began = time.monotonic()
            task = self.server.ask(name, "POST", "claim")["task"]
            self.seconds["next"].append(time.monotonic() - began)
            ranks = randomness.sample(range(len(task["outputs"])), len(task["outputs"]))
            answer = {"ranks": ranks, "seconds": 1.0}
            self.server.ask(name, "POST", f"tasks/{task['task_id']}/answer", answer)
            self.answers += 1

    def lead(self) -> None:
        """Refresh the lead's page until the work is stopped."""
        while not self.stopped.wait(1.0):
            began = time.monotonic()
            for path in LEAD_PATHS:
                self.server.ask("lead", "GET", f"lead/{path}")
            self.seconds["page"].append(time.monotonic() - began)

    def run(self, seconds: float) -> dict[str, list[float]]:
        """Work for some seconds; return the times of this run."""
        self.stopped.clear()
        self.seconds = {"next": [], "page": []}
        people = [threading.Thread(target=self.labeler, args=(n,)) for n in range(LABELERS)]
        people.append(threading.Thread(target=self.lead))
        for person in people:
            person.start()
        time.sleep(seconds)
        self.stopped.set()
        for person in people:
            person.join()
        return self.seconds


def slow_connections(server: Server) -> list[socket.socket]:
    """Open connections that send half a request and then nothing."""
    host, port = server.base.removeprefix("http://").split(":")
    found = []
    for number in range(SLOW):
        connection = socket.create_connection((host, int(port)), timeout=10)
        halves = (b"GET /api/me HTTP/1.1\r\nHost: x\r\n", b"")
        body = b"POST /api/claim HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n{"
        connection.sendall((*halves, body)[number % 3])
        found.append(connection)
    return found


def line(name: str, times: list[float], bar: float) -> bool:
    """Print a median beside its bar; return whether it is below."""
    median = statistics.median(times)
    late = sorted(times)[int(0.95 * len(times))]
    print(
        f"{name}: median {1000 * median:.0f} ms, 95% {1000 * late:.0f} ms of {len(times)} "
        f"(bar {1000 * bar:.0f} ms)",
        flush=True,
    )
    return median < bar


def main() -> None:
    """Fill, serve, work, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", help="a PostgreSQL URL; by default a fresh SQLite file")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--pause", type=float, default=1.0, help="mean seconds of a look at a task")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = options.database or f"sqlite:///{folder}/labels.db"
        fill(url)
        server = Server(url, folder)
        try:
            work = Work(server, options.pause)
            times = work.run(options.seconds)
            passed = [line("next task", times["next"], NEXT_TASK)]
            passed.append(line("lead's page", times["page"], LEAD_PAGE))
            slow = slow_connections(server)
            times = work.run(options.seconds)
            passed.append(line(f"next task beside {SLOW} slow ones", times["next"], NEXT_TASK))
            passed.append(line(f"lead's page beside {SLOW}", times["page"], LEAD_PAGE))
            for connection in slow:
                connection.close()
            print(f"{work.answers} answers, peak memory {server.peak_mb():.0f} MB (bar {MEMORY})")
            passed.append(server.peak_mb() < MEMORY)
        finally:
            server.stop()
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()

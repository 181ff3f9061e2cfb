"""`textrl collect` as a process: where it listens, what it prints, what outlives a kill."""

import json
import os
import random
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from labels import Served, free_port, or_fail
from sqlalchemy import select
from sqlalchemy.orm import Session

from textrl.cli import main
from textrl.labels.store import Store
from textrl.labels.tables import Answer, Audit, Task


def write_tasks(folder: Path, count: int, outputs: int = 4) -> None:
    rows = [
        {
            "prompt": f"prompt {i}",
            "completions": [f"output {i} {'abcdefghi'[k]}" for k in range(outputs)],
        }
        for i in range(count)
    ]
    (folder / "tasks.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host=0.0.0.0"], "--behind_proxy"),
        (["--host=192.168.1.7"], "tokens would travel unprotected"),
        (["--host=::"], "--tls_cert"),
        (["--model=none"], "a file of prompts"),
        (["--tls_cert=a.pem"], "certificate and key together"),
        (["--samples=1", "--prompts=tasks.jsonl"], "2 to 9"),
        (["--prompts=none.jsonl"], "none.jsonl"),
        (["--database=labels.db"], "sqlite:///labels.db"),
        (["--labelers=" + "x" * 65], "1 to 64"),
        (["--labelers=lead"], "'lead' is the name of a lead"),
        (["--tls_cert=none.pem", "--tls_key=none.pem"], "none.pem"),
        (["--database=postgresql://ann:secret@host:port/x"], "ann:***@host"),
        (["--prompts=tasks.jsonl", "--model=no/such"], "no/such"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path, 1)
    with pytest.raises(SystemExit) as stopped:
        main(["collect", "--port=0", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert error.count("\n") == 0


def test_a_taken_port_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit):
            main(["collect", f"--port={port}", f"--database=sqlite:///{tmp_path}/l.db"])
    assert "give another --port" in capsys.readouterr().err


def test_links_last_over_a_restart(tmp_path: Path) -> None:
    write_tasks(tmp_path, 3)
    began = time.monotonic()
    first = Served(tmp_path, "--prompts=tasks.jsonl")
    assert set(first.links) == {"me", "lead"}
    assert "3 open tasks" in first.printed
    with first.client("me") as me:
        task = me.post("/api/claim").json()["task"]
        sent = me.post(f"/api/tasks/{task['task_id']}/answer", json={"ranks": [0, 1, 2, 3]})
        assert sent.status_code == 201
        assert time.monotonic() - began < 60  # from the command to the first stored ranking
        first.kill()
        second = Served(tmp_path, "--prompts=tasks.jsonl", port=first.port)
        assert set(second.links) == {"lead"}  # "me" keeps the link
        assert "0 new" in second.printed
        assert me.get("/api/me").json()["done"] == 1
        with first.client("lead") as former, second.client("lead") as today:
            assert former.get("/api/me").status_code == 401  # a start revokes the lead's old link
            assert today.get("/api/lead/overview").status_code == 200
    second.stop()


def test_backup_of_a_running_server(tmp_path: Path) -> None:
    write_tasks(tmp_path, 2)
    served = Served(tmp_path, "--prompts=tasks.jsonl")
    with served.client("me") as me:
        task = me.post("/api/claim").json()["task"]
        me.post(f"/api/tasks/{task['task_id']}/answer", json={"ranks": [0, 1, 2, 3]})
        command = [sys.executable, "-m", "textrl", "collect", "backup", "--output=copy.db"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "1 answers copied" in done.stdout
    served.stop()
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("SELECT count(*) FROM answer").fetchone() == (1,)


def test_tls(tmp_path: Path) -> None:
    write_tasks(tmp_path, 1)
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem"]
    certificate += ["-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost"]
    certificate += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    if shutil.which("openssl") is None:
        or_fail("no openssl here")
    subprocess.run(certificate, cwd=tmp_path, check=True, capture_output=True)
    files = ["--tls_cert=cert.pem", "--tls_key=key.pem"]
    served = Served(tmp_path, "--prompts=tasks.jsonl", "--host=0.0.0.0", *files)
    assert served.links["me"].startswith("https://0.0.0.0:")
    token = served.links["me"].split("#token=")[1]
    trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    with httpx2.Client(base_url=f"https://127.0.0.1:{served.port}", verify=trusted) as client:
        headers = {"authorization": f"Bearer {token}"}
        assert client.get("/api/me", headers=headers).json()["left"] == 1
    served.stop()


def test_behind_a_proxy_the_links_are_public_and_the_caller_is_the_proxys(tmp_path: Path) -> None:
    write_tasks(tmp_path, 1)
    options = ["--behind_proxy", "--public_url=https://labels.example.org/"]
    port = free_port()
    served = Served(tmp_path, "--prompts=tasks.jsonl", *options, port=port)
    assert served.links["me"].startswith("https://labels.example.org/#token=")
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
        codes = [
            client.get("/api/me", headers={"x-forwarded-for": f"10.0.0.{caller}"}).status_code
            for caller in (1, 2)
            for _ in range(28)
        ]
    assert codes == [401] * 56  # two strangers, 30 tries each
    served.stop()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["sampler", "checker"])
def test_live_from_a_checkpoint(way: str, tmp_path: Path, checkpoint: str) -> None:
    """Outputs are sampled ahead, differ, and can be made again; the reward model is checked."""
    prompts = [{"prompt": letter, "topic": letter} for letter in "abcdefgh"]
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(row) for row in prompts))
    if way == "sampler":
        options = [f"--model={checkpoint}", "--samples=3", "--max_completion_tokens=6"]
    else:
        write_tasks(tmp_path, 24, outputs=2)
        options = [f"--reward_model={checkpoint}"]
    served = Served(tmp_path, "--prompts=tasks.jsonl", *options)
    with served.client("me") as me, served.client("lead") as lead:
        done = 0
        while done < (8 if way == "sampler" else 24):
            task = me.post("/api/claim").json()["task"]
            if task is None:
                time.sleep(0.1)
                continue
            count = len(task["outputs"])
            if way == "sampler":
                assert len(set(task["outputs"])) == count == 3
            ranks = list(range(count))
            me.post(f"/api/tasks/{task['task_id']}/answer", json={"ranks": ranks})
            done += 1
        if way == "checker":
            deadline = time.monotonic() + 90
            while not (checks := lead.get("/api/lead/overview").json()["reward_checks"]):
                assert time.monotonic() < deadline
                time.sleep(0.5)
            assert checks[0]["rankings"] == 24
            assert 0 <= checks[0]["accuracy"] <= 1
    served.stop()
    if way == "sampler":
        again = tmp_path / "again"
        again.mkdir()
        (again / "tasks.jsonl").write_text("\n".join(json.dumps(row) for row in prompts[::-1]))
        second = Served(again, "--prompts=tasks.jsonl", *options)
        wait_for_tasks(second, 8)
        second.stop()
        made = [
            {task.prompt: task.outputs for task in tasks_in(folder)} for folder in (tmp_path, again)
        ]
        assert made[0] == made[1]  # in another order, from the same seed
        source = tasks_in(again)[0].source
        assert source["model"] == checkpoint
        assert source["seed"] == 0


def tasks_in(folder: Path) -> list[Task]:
    store = Store(f"sqlite:///{folder}/labels.db")
    with Session(store.engine) as session:
        found = list(session.scalars(select(Task)))
    store.close()
    return found


def wait_for_tasks(served: Served, count: int) -> None:
    deadline = time.monotonic() + 60
    with served.client("lead") as lead:
        while lead.get("/api/lead/overview").json()["tasks"]["total"] < count:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_prompt_file_with_a_password_in_the_url_leaves_none_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "postgresql://ann:secret@127.0.0.1:1/labels"
    with pytest.raises(SystemExit):
        main(["export", f"--database={url}"])
    with pytest.raises(SystemExit):
        main(["sft", "--model=x", f"--data={url}", f"--output_dir={tmp_path}/run"])
    printed = capsys.readouterr()
    assert "secret" not in printed.out + printed.err


LABELERS = 16


class Worker(threading.Thread):
    """A labeler who ranks through HTTP until nothing is left, over a server that comes and goes."""

    def __init__(self, client: httpx2.Client, seed: int) -> None:
        super().__init__(daemon=True)
        self.client, self.random = client, random.Random(seed)
        self.acknowledged: dict[int, list[int]] = {}
        self.faults: list[str] = []
        self.finished = threading.Event()

    def run(self) -> None:
        empty = 0
        while empty < 5 and not self.finished.is_set():
            try:
                task = self.client.post("/api/claim").json()["task"]
                if task is None:
                    empty += 1
                    time.sleep(0.2)
                    continue
                empty = 0
                ranks = self.random.sample(range(4), 4)
                path = f"/api/tasks/{task['task_id']}/answer"
                self._send(path, ranks, task)
            except httpx2.TransportError:
                time.sleep(0.1)

    def _send(self, path: str, ranks: list[int], task: dict[str, object]) -> None:
        """Send until there is an answer, as the page does: the same body, again and again."""
        while True:
            try:
                response = self.client.post(path, json={"ranks": ranks})
                break
            except httpx2.TransportError:
                time.sleep(0.1)
        if response.status_code == 201:
            assert isinstance(task["task_id"], int)
            self.acknowledged[task["task_id"]] = response.json()["ranks"]
        else:
            self.faults.append(response.text)


@pytest.mark.parametrize(
    "rankings",
    [pytest.param(200, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.proof)],
)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_kill_9_loses_no_acknowledged_answer(
    kind: str, rankings: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """16 labelers rank over HTTP, SIGKILL of the server in the middle, twice, and a restart."""
    url = "sqlite:///labels.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    write_tasks(tmp_path, rankings // 2)
    names = [f"p{index}" for index in range(LABELERS)]
    arguments = [f"--database={url}", "--prompts=tasks.jsonl", "--overlap=2"]
    served = Served(tmp_path, *arguments, f"--labelers={','.join(names)}")
    workers = [Worker(served.client(name), seed) for seed, name in enumerate(names)]
    began = time.monotonic()
    for worker in workers:
        worker.start()

    def acknowledged() -> int:
        return sum(len(worker.acknowledged) for worker in workers)

    for share in (0.3, 0.6):
        while acknowledged() < share * rankings:
            time.sleep(0.01)
            assert time.monotonic() - began < 300
        served.kill()
        served = Served(tmp_path, *arguments, port=served.port)
    for worker in workers:
        worker.join(300)
        assert not worker.is_alive()
        worker.client.close()
    print(
        f"{acknowledged() / (time.monotonic() - began):.0f} rankings a second, two kills included"
    )
    served.stop()
    assert [worker.faults for worker in workers] == [[]] * LABELERS
    os.chdir(tmp_path)
    store = Store(url)
    with Session(store.engine) as session:
        stored = list(session.scalars(select(Answer)))
        audited = session.scalars(select(Audit.task_id).where(Audit.action == "answer")).all()
    assert len(stored) == acknowledged() == rankings == len(audited)
    shown: dict[int, dict[int, list[int]]] = {}
    for answer in stored:
        ranks = [answer.ranks[index] for index in answer.shown_order]
        shown.setdefault(answer.labeler_id, {})[answer.task_id] = ranks
    # on a busy machine one of them may come when no task is left
    done = [worker.acknowledged for worker in workers if worker.acknowledged]
    assert len(done) == len(shown)
    assert all(rankings_of_one in shown.values() for rankings_of_one in done)
    store.close()

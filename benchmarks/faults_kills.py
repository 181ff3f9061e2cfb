"""Kills of whole runs: SIGKILL at a file operation or at a moment, `--resume`, the same end.

Every trainer and agent, from the command line and from Python, with and without LoRA. A run is the
command line itself, or the same calls from Python, in the child of a fork that has imported torch.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from crash import NEVER, kill_at
from faults_inputs import PAIRS, TEXTS, Inputs

from textrl import cli
from textrl.agents import GRPO, PPO, RLOO, OnlineDPO, Reinforce
from textrl.checkpoint import RUN_FILE
from textrl.cli import commands as commands  # before the forks, which then need not load it
from textrl.config import AGENT_COMMANDS, DPOConfig, RewardConfig, SFTConfig
from textrl.durable import CHECKSUMS, check_files
from textrl.errors import UserError
from textrl.trainers import DPOTrainer, RewardTrainer, SFTTrainer

TRAINERS = {
    "sft": (SFTTrainer, SFTConfig),
    "reward": (RewardTrainer, RewardConfig),
    "dpo": (DPOTrainer, DPOConfig),
}
AGENTS = {"ppo": PPO, "rloo": RLOO, "grpo": GRPO, "reinforce": Reinforce, "online_dpo": OnlineDPO}
CRITICS = ("value_head", "separate", "reward_model")
KINDS = (
    *TRAINERS,
    *(f"ppo {critic}" for critic in CRITICS),
    *("rloo", "grpo", "reinforce", "online_dpo"),
)
UPDATES = {"minibatch_size": 4, "num_epochs": 6, "save_every": 4}
EPISODES = {"episodes_per_iteration": 16, "learning_rate": 1e-3}
ITERATIONS, TOKENS = 6, 800
SECONDS = 120.0
"""A run that takes longer hangs."""
CLOCKED = (".lock", ".held_by.json", "machine.json", "README.md", CHECKSUMS, RUN_FILE)
"""Files that depend on the clock or the process; the checksums are checked instead."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One way to train something."""

    kind: str
    python: bool
    lora: bool

    @property
    def name(self) -> str:
        """The words that tell it from the others."""
        return f"{self.kind}, {'Python' if self.python else 'command line'}" + (
            ", LoRA" if self.lora else ""
        )

    def work(self, inputs: Inputs, folder: Path, how: str) -> None:
        """Train in a folder from the start, or go on there (`how` is "", "resume", "overwrite")."""
        if self.python:
            self._in_python(inputs, folder, how)
        else:
            os.chdir(inputs.folder)
            cli.main([*self.command(inputs), f"--output_dir={folder}", *([f"--{how}"] * bool(how))])

    def command(self, inputs: Inputs) -> list[str]:
        """Return the command line, without the run's folder."""
        command, _, critic = self.kind.partition(" ")
        options: dict[str, Any] = {"model": inputs.adapter(command) if self.lora else inputs.model}
        if command in TRAINERS:
            options |= UPDATES | {"data": "texts.jsonl" if command == "sft" else "pairs.jsonl"}
        else:
            options |= EPISODES | {"prompts": "prompts.jsonl", "total_timesteps": TOKENS}
            options |= {"num_envs": 16, "max_completion_tokens": 8, "save_every": 2}
            options |= {"reward": inputs.reward_of(critic), "reference": inputs.model}
            options |= {"critic": critic} if critic else {}
            options |= {"group_size": 4} if AGENTS[command].compares_samples else {}
        return [command, *(f"--{name}={value}" for name, value in options.items())]

    def _in_python(self, inputs: Inputs, folder: Path, how: str) -> None:
        command, _, critic = self.kind.partition(" ")
        if command in TRAINERS:
            trainer_class, config_class = TRAINERS[command]
            model = inputs.new_model(command, lora=self.lora)
            data = TEXTS if command == "sft" else PAIRS
            config = config_class(**UPDATES)
            trainer = trainer_class(
                model, inputs.tokenizer, data, config, output_dir=folder, shown=False
            )
            trainer.train(resume=how == "resume")
            return
        agent_class, config_class = AGENTS[command], AGENT_COMMANDS[command][1]
        venv = inputs.venv(critic, group_size=4 if agent_class.compares_samples else 1)
        try:
            agent: Any = agent_class.load(folder, venv)
        except UserError:
            if folder.exists() and any(folder.glob("agent.json")):
                raise
            policy = inputs.new_model("sft", lora=self.lora)
            options = EPISODES | ({"critic": critic} if critic else {})
            agent = agent_class(policy, venv, config_class(**options))
        while agent.iteration < ITERATIONS:
            agent.iterate()
            agent.save(folder)


def runs() -> Iterator[Run]:
    """Yield every way."""
    for lora in (False, True):
        for python in (False, True):
            for kind in KINDS:
                yield Run(kind=kind, python=python, lora=lora)


def in_child(
    work: Callable[[], object], log: Path, after: float | None = None
) -> tuple[int, float]:
    """Do some work in a child; kill it after some seconds if asked to.

    Returns: Its exit status, negative for a signal, and its seconds.
    """
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 1
        try:
            work()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        os._exit(status)
    deadline = began + (SECONDS if after is None else after)
    while True:
        done, raw = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(raw), time.monotonic() - began
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return (-9 if after is not None else -14), time.monotonic() - began
        time.sleep(0.002)


def snapshot(folder: Path) -> dict[str, str]:
    """Return a digest of everything in a folder that must be the same after a kill."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or "tfevents" in name or path.name in CLOCKED:
            continue
        content = path.read_bytes()
        if name == "progress.json":
            rows = [json.loads(line) for line in content.splitlines()]
            kept = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
            content = json.dumps(kept).encode()
        elif name == "config.yaml":
            settings = yaml.safe_load(content)
            content = json.dumps({k: v for k, v in settings.items() if k != "output_dir"}).encode()
        elif name == "progress.csv" and b"time/" in content:
            content = str(content.count(b"\n")).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    if (folder / CHECKSUMS).exists():
        check_files(folder)
    return found


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one fault."""

    run: str
    where: str
    """What was done, and where."""
    fault: str
    """What was wrong in the end; "" for nothing."""
    tried: bool = True
    """Whether it was done at all."""


def one_line(status: int, log: Path, word: str) -> bool:
    """Return whether a command was refused with one line that has this word in it."""
    text = log.read_text(errors="replace")
    errors = [line for line in text.splitlines() if line.startswith("textrl: error: ")]
    refused = status == 2 and len(errors) == 1 and "Traceback" not in text
    return refused and word in errors[0]


def finish(run: Run, inputs: Inputs, folder: Path, log: Path) -> str:
    """Bring a killed run to its end as its user would; return what stood in the way, or ""."""
    said = ""
    for how in ("resume", "", "overwrite"):
        if run.python and how == "overwrite":
            break
        status, _ = in_child(lambda how=how: run.work(inputs, folder, how), log)
        if status == 0:
            return ""
        said = log.read_text().strip()
        if "Traceback" in said and not (run.python and "UserError" in said):
            break
    return said.splitlines()[-1] if said else f"exit status {status}"


@dataclass(frozen=True, kw_only=True)
class Straight:
    """An undisturbed run: what it leaves, its file operations and its seconds."""

    files: dict[str, str]
    operations: int
    seconds: float


def undisturbed(run: Run, inputs: Inputs, place: Path) -> Straight:
    """Run without a fault.

    Raises:
        RuntimeError: It fails by itself.
    """
    place.mkdir()
    folder, log, counts = place / "straight", place / "log", place / "operations"

    def counted() -> None:
        seen = kill_at(folder, NEVER)
        try:
            run.work(inputs, folder, "")
        finally:
            counts.write_text(str(seen()))

    status, seconds = in_child(counted, log)
    if status:
        raise RuntimeError(f"{run.name} fails without a fault: {log.read_text()[-500:]}")
    return Straight(files=snapshot(folder), operations=int(counts.read_text()), seconds=seconds)


def killed(
    run: Run, inputs: Inputs, folder: Path, how: str, operation: int, after: float | None
) -> bool:
    """Run until a kill at an operation or after some seconds; return whether it came to that."""

    def doomed() -> None:
        kill_at(folder, operation)
        run.work(inputs, folder, how)

    status, _ = in_child(doomed, folder.with_name("log"), after)
    return status == -9


def kills(inputs: Inputs, total: int, seed: int) -> Iterator[Outcome]:
    """Kill runs of every way in turn; yield what became of each.

    Two of three are killed at a file operation, the third at a moment; every fourth is killed again
    while it goes on.
    """
    randomness = random.Random(seed)
    ways = list(runs())
    randomness.shuffle(ways)
    straight: dict[Run, Straight] = {}
    for number in range(total):
        run = ways[number % len(ways)]
        place = inputs.folder / run.name.replace(", ", "-").replace(" ", "_")
        if run not in straight:
            straight[run] = undisturbed(run, inputs, place)
        expected, folder = straight[run], place / f"killed{number}"
        operation, after = randomness.randrange(expected.operations), None
        if number % 3 == 2:
            operation, after = NEVER, randomness.uniform(0.1, 0.9) * expected.seconds
        tried = killed(run, inputs, folder, "", operation, after)
        where = f"operation {operation}" if after is None else f"{after:.2f} s"
        if tried and number % 4 == 3:
            again = randomness.randrange(1, 1 + expected.operations // 2)
            killed(run, inputs, folder, "resume", again, None)
            where += f", and at operation {again} of the resumed run"
        fault = finish(run, inputs, folder, place / "log") if tried else ""
        now = {} if fault else snapshot(folder)
        if not fault and now != expected.files:
            names = sorted(expected.files.keys() | now.keys())
            other = [name for name in names if expected.files.get(name) != now.get(name)]
            fault = f"other {', '.join(other)}"
        yield Outcome(run=run.name, where=where, fault=fault, tried=tried)

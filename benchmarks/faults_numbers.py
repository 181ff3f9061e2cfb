"""Rewards that return nonsense, raise or hang, and numbers that are not finite in any model."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from faults_inputs import Inputs
from faults_kills import Outcome, Run, in_child, one_line
from safetensors.torch import load_file, save_file

from textrl import cli

BAD_REWARDS = {
    "raise": "raise ConnectionError('reset by peer')",
    "assertion": "assert False",
    "exit with success": "raise SystemExit(0)",
    "interrupted": "raise TimeoutError",
    "out of memory": "raise MemoryError",
    "recursion": "return reward(prompts, completions)",
    "hang": "import time; time.sleep(600)",
    "None": "return None",
    "nan": "return [float('nan')] * len(completions)",
    "infinity": "return [float('inf')] * len(completions)",
    "too large for float32": "return [1e39] * len(completions)",
    "too large for float64": "return [10 ** 400] * len(completions)",
    "one missing": "return [1.0] * (len(completions) - 1)",
    "one number": "return 1.0",
    "a text": "return '1' * len(completions)",
    "bytes": "return b'1' * len(completions)",
    "a dict": "return {i: 1.0 for i in range(len(completions))}",
    "a set": "return {float(i) for i in range(len(completions))}",
    "texts": "return ['good'] * len(completions)",
    "complex": "return [1j] * len(completions)",
    "lists": "return [[1.0]] * len(completions)",
    "a generator": "return (1.0 for text in completions)",
    "None for one": "return [None] + [1.0] * (len(completions) - 1)",
    "a matrix": "import numpy; return numpy.ones((len(completions), 2))",
}
"""The body of a reward function that a run must refuse, by name."""


def rewards(inputs: Inputs, each: int, seed: int) -> Iterator[Outcome]:
    """Train with each bad reward; the run ends with one line that names the function."""
    for name in list(BAD_REWARDS)[:each]:
        module = f"bad_{list(BAD_REWARDS).index(name)}"
        body = BAD_REWARDS[name]
        (inputs.folder / f"{module}.py").write_text(
            f"def reward(prompts, completions):\n    {body}\n"
        )
        place = inputs.folder / module
        command = [argument for argument in ppo(inputs) if "--reward=" not in argument]
        command += [f"--reward={module}:reward", "--reward_timeout=2", f"--output_dir={place}"]
        log = place.with_suffix(".log")
        status, seconds = in_child(lambda command=command: _at(inputs, command), log)
        right = one_line(status, log, "reward")
        fault = "" if right else f"status {status}: {log.read_text()[-300:]}"
        if not fault and seconds > 60:
            fault = f"only after {seconds:.0f} s"
        yield Outcome(run="bad reward", where=name, fault=fault)


def ppo(inputs: Inputs) -> list[str]:
    """Return the command line of a PPO run, without its folder."""
    return Run(kind="ppo separate", python=False, lora=False).command(inputs)


def spoiled(folder: Path, copy: Path) -> str:
    """Return a copy of a model's folder with one weight that is not a number."""
    shutil.copytree(folder, copy)
    file = copy / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"].view(-1)[3] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    (copy / "checksums.json").unlink(missing_ok=True)  # a model that was saved so
    return str(copy)


def not_finite(inputs: Inputs, each: int, seed: int) -> Iterator[Outcome]:
    """Put NaN into each model, into the data and into the learning rate; the run says where."""
    bad_model = spoiled(Path(inputs.model), inputs.folder / "bad_model")
    bad_reward = spoiled(inputs.folder / "reward", inputs.folder / "bad_reward")
    rows = '{"prompt": "a", "chosen": "b", "rejected": "c", "margin": NaN}\n' * 4
    (inputs.folder / "bad_pairs.jsonl").write_text(rows)
    training = ["--minibatch_size=4", f"--model={inputs.model}"]
    cases: dict[str, tuple[list[str], str]] = {
        "policy of ppo": ([*ppo(inputs), f"--model={bad_model}"], "embed_tokens"),
        "reference of ppo": ([*ppo(inputs), f"--reference={bad_model}"], "embed_tokens"),
        "reward model of ppo": ([*ppo(inputs), f"--reward={bad_reward}"], "embed_tokens"),
        "sft": (["sft", *training, "--data=texts.jsonl", f"--model={bad_model}"], "embed_tokens"),
        "reward": (
            ["reward", *training, "--data=pairs.jsonl", f"--model={bad_model}"],
            "embed_tokens",
        ),
        "dpo": (["dpo", *training, "--data=pairs.jsonl", f"--model={bad_model}"], "embed_tokens"),
        "margin": (["reward", *training, "--data=bad_pairs.jsonl"], "margin"),
        "learning rate": (["sft", *training, "--data=texts.jsonl", "--learning_rate=nan"], "rate"),
        "useless": (["sft", *training, "--data=texts.jsonl", "--learning_rate=1e30"], "finite"),
        "generate": (
            ["generate", f"--model={bad_model}", "--prompts=prompts.jsonl", "--output=t.jsonl"],
            "finite",
        ),
    }
    for number, (name, (command, word)) in enumerate(list(cases.items())[:each]):
        log = inputs.folder / f"nan{number}.log"
        more = [] if name == "generate" else [f"--output_dir={inputs.folder / f'nan{number}'}"]
        status, _ = in_child(lambda c=command, m=more: _at(inputs, [*c, *m]), log)
        fault = "" if one_line(status, log, word) else f"status {status}: {log.read_text()[-300:]}"
        yield Outcome(run="NaN", where=name, fault=fault)


def _at(inputs: Inputs, command: list[str]) -> None:
    os.chdir(inputs.folder)
    cli.main(command)

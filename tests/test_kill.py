"""A process that is killed with SIGKILL loses nothing: --resume ends in the same weights.

`benchmarks/faults.py` kills every agent and trainer in a fork; here three are whole processes.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

REWARD = "def letters(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
COMMANDS = {
    "sft": ["--data=texts.jsonl", "--num_epochs=30", "--minibatch_size=4", "--save_every=5"],
    "dpo": ["--data=pairs.jsonl", "--num_epochs=30", "--minibatch_size=4", "--save_every=5"],
    "ppo": ["--prompts=prompts.jsonl", "--reward=my_reward:letters", "--total_timesteps=3000"]
    + ["--num_envs=16", "--episodes_per_iteration=16", "--max_completion_tokens=8"]
    + ["--save_every=2"],
}


def weights(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def rows_of(file: Path) -> list[dict[str, float]]:
    """Return the rows of a file without what the clock says in them."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    clock = ("time/collect_seconds", "time/update_seconds", "time/reward_seconds")
    clock += ("time/tokens_per_second",)
    return [{name: v for name, v in row.items() if name not in clock} for row in rows]


@pytest.mark.proof
@pytest.mark.parametrize("command", COMMANDS)
def test_kill_9_and_resume(command: str, checkpoint: str, tmp_path: Path) -> None:
    texts = [{"text": "abcdefghijklm"[: 2 + i]} for i in range(11)]
    pairs = [{"prompt": p, "chosen": "bcd", "rejected": "zz"} for p in "abcdefgh"]
    for name, rows in (("texts", texts), ("pairs", pairs), ("prompts", [{"prompt": "a"}])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "my_reward.py").write_text(REWARD)

    def start(output: str, *more: str) -> subprocess.Popen[bytes]:
        arguments = [command, f"--model={checkpoint}", f"--output_dir={output}"]
        return subprocess.Popen(
            [sys.executable, "-m", "textrl", *arguments, *COMMANDS[command], *more],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
        )

    assert start("straight").wait(timeout=300) == 0
    process = start("killed")
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoints" / "latest").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert start("killed", "--resume").wait(timeout=300) == 0
    assert torch.equal(weights(tmp_path / "killed"), weights(tmp_path / "straight"))
    expected = rows_of(tmp_path / "straight" / "progress.json")
    assert rows_of(tmp_path / "killed" / "progress.json") == expected

"""Two processes give the result of one (gloo on the CPU)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from textrl.durable import check_files

SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
from textrl.config import SFTConfig
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.trainers import SFTTrainer
from accelerate import PartialState
texts = [{"text": "abcdefghijklm"[:2 + i]} for i in range(11)]
trainer = SFTTrainer(tiny_model(), tiny_tokenizer(), texts,
    SFTConfig(learning_rate=1e-2, minibatch_size=5, num_epochs=3, save_every=1), shown=False,
    output_dir=sys.argv[2])
trainer.train()
state = PartialState()
if state.is_main_process:
    first = next(trainer.model.parameters()).detach().flatten()[:50].tolist()
    open(sys.argv[1], "w").write(json.dumps([state.num_processes, first]))
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    found = []
    for count in (1, 2):
        result = tmp_path / f"{count}.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count)]
        run = tmp_path / f"run_{count}"
        launcher += ["--master_port", str(29611 + count), str(script), str(result), str(run)]
        done = subprocess.run(launcher, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        processes, numbers = json.loads(result.read_text())
        assert processes == count
        found.append(numbers)
        check_files(run)  # written by one of them
        assert (run / "model.safetensors").exists()
        assert not (run / "checkpoints").exists()
        rows = (run / "progress.json").read_text().splitlines()
        assert [json.loads(row)["time/step"] for row in rows] == list(range(1, 10))
    assert found[0] == pytest.approx(found[1], abs=1e-5)

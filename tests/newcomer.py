"""Five changes as a newcomer makes them, each applied to a copy of the code and then used.

`python tests/newcomer.py` prints the files that each change touches. A change is a list of edits
(file, the text before which something is inserted, what is inserted), and a script that uses it.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change to the library."""

    name: str
    files: int
    """The number of files that it may touch, new ones included."""
    edits: tuple[tuple[str, str, str], ...]
    """File, the text before which something is inserted ("" for a new file), what is inserted."""
    use: str
    """A script that fails unless the change works."""


AGENT = '''"""Raft: supervised learning on the best sample of each group (2304.06767)."""

from functools import partial

import torch
from torch import Tensor

from textrl.updater import update_report
from textrl.updater import Numbers, Steps
from textrl.agents.text_agent import TextAgent
from textrl.config import RaftConfig
from textrl.masking import masked_mean
from textrl.agents.rollout import Rollout


class Raft(TextAgent):
    """Maximises the likelihood of each group's best sample."""

    name = "raft"
    config_class = RaftConfig
    config: RaftConfig
    compares_samples = True

    def train_on(self, rollout: Rollout, steps: Steps) -> Numbers:
        """Train on the best sample of each group."""
        groups = rollout.scores.view(-1, self.env.group_size)
        best = torch.arange(len(groups)) * self.env.group_size + groups.argmax(1)
        loss = partial(self._loss, rollout.rows(best))
        batches = steps.over(
            lengths=rollout.lengths[best],
            weights=rollout.mask[best].sum(1),
            minibatch_size=self.config.best_minibatch_size,
        )
        return update_report([step.take(loss) for step in batches])

    def _loss(self, rollout: Rollout, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        part = rollout.rows(rows)
        loss = -masked_mean(self.logprobs(part), part.mask)
        return loss, {"loss": loss}
'''
CONFIG = '''@dataclass(frozen=True, kw_only=True)
class RaftConfig(AgentConfig):
    """Raft: supervised learning on the best sample of each group."""

    best_minibatch_size: Positive[int] = 8
    """Number of best samples per update."""


'''
CHANGES = (
    Change(
        name="a preference loss",
        files=2,
        edits=(
            ("textrl/loss_names.py", '    "sigmoid", "cdpo",', '    "exponential",\n'),
            (
                "textrl/preference_losses.py",
                "PREFERENCE_LOSSES: dict",
                "def _exponential(\n"
                "    pairs: PreferenceBatch, settings: PreferenceSettings\n"
                ") -> Tensor:\n"
                '    """Return the exponential loss of the margin (2402.05749, table 1)."""\n'
                "    return (-settings.beta * (pairs.h_chosen - pairs.h_rejected)).exp()\n\n\n",
            ),
            (
                "textrl/preference_losses.py",
                '    "sigmoid": _sigmoid,',
                '    "exponential": _exponential,\n',
            ),
        ),
        use="""
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.trainers import DPOConfig, DPOTrainer
rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 8
config = DPOConfig(loss_type={"exponential": 0.5, "sigmoid": 0.5}, minibatch_size=4)
DPOTrainer(tiny_model(), tiny_tokenizer(), rows, config, shown=False).train()
""",
    ),
    Change(
        name="an agent with its own options and command",
        files=3,
        edits=(
            ("agents/raft.py", "", AGENT),
            ("textrl/config.py", "AGENT_COMMANDS: dict", CONFIG),
            (
                "textrl/config.py",
                '    "ppo": ("train a policy with PPO"',
                '    "raft": ("train a policy with Raft", RaftConfig),\n',
            ),
            (
                "agents/__init__.py",
                "from textrl.agents.reinforce",
                "from textrl.agents.raft import Raft\n",
            ),
            ("agents/__init__.py", 'register("ppo", PPO)', 'register("raft", Raft)\n'),
        ),
        use="""
import json
from pathlib import Path
from textrl import cli
from textrl.envs import tiny_model, tiny_tokenizer
tiny_model().save_pretrained("model")
tiny_tokenizer().save_pretrained("model")
Path("prompts.jsonl").write_text('{"prompt": "a"}\\n{"prompt": "b"}\\n')
reward = "def f(prompts, completions): return [float(len(c)) for c in completions]"
Path("my_reward.py").write_text(reward)
options = "--model=model --prompts=prompts.jsonl --reward=my_reward:f --group_size=4 --num_envs=16"
options += " --episodes_per_iteration=16 --best_minibatch_size=2 --total_timesteps=60"
cli.main(["raft", *options.split(), "--max_completion_tokens=4", "--output_dir=run"])
assert json.loads(Path("run/agent.json").read_text())["config"]["best_minibatch_size"] == 2
""",
    ),
    Change(
        name="a reward type",
        files=1,
        edits=(
            (
                "textrl/rewards.py",
                "        if isinstance(source, str | Path):",
                '        if isinstance(source, str) and source.startswith("contains:"):\n'
                '            word = source.removeprefix("contains:")\n'
                "            functions.append(\n"
                "                lambda prompts, completions, word=word: [\n"
                "                    float(word in text) for text in completions\n"
                "                ]\n"
                "            )\n"
                "            names.append(source)\n"
                "            weights.append(weight)\n"
                "            continue\n",
            ),
        ),
        use="""
import gymnasium as gym
import textrl
from textrl.envs import tiny_model, tiny_tokenizer
env = gym.make("TextRLHF-v0", reference=tiny_model(), tokenizer=tiny_tokenizer(), prompts=["a"],
    reward=[("contains:b", 2.0)])
assert env.unwrapped.score_tokens([[1, 3]], [[4]]).tolist() == [2.0]
""",
    ),
    Change(
        name="a critic",
        files=2,
        edits=(
            ("textrl/config.py", '"value_head", "reward_model", "separate"]', '"frozen_trunk", '),
            (
                "agents/critic.py",
                '        if kind == "separate":',
                '        if kind == "frozen_trunk":\n'
                "            trunk = copy.deepcopy(lm.trunk).requires_grad_(False)\n"
                "            head_of = ValueHead(lm.state_size, head)\n"
                "            return Critic(trunk, lm.packing, head_of).to(policy.device)\n",
            ),
        ),
        use="""
import gymnasium as gym
import textrl
from textrl.agents import PPO, PPOConfig
from textrl.envs import tiny_model
venv = gym.make_vec("TextRLHF-v0", num_envs=8, max_completion_tokens=4)
config = PPOConfig(episodes_per_iteration=8, minibatch_size=4, critic="frozen_trunk")
agent = PPO(tiny_model(), venv, config)
agent.learn(1)
""",
    ),
    Change(
        name="a report plot",
        files=1,
        edits=(
            (
                "textrl/demo/report.py",
                '    "rollout/length": "length (tokens)",',
                '    "train/clip_fraction": "clip fraction",\n',
            ),
        ),
        use="""
import json, sys
from pathlib import Path
from textrl.demo.report import write_report
folder = Path("demo")
for stage in ("sft", "reward_model", "ppo", "dpo"):
    (folder / stage).mkdir(parents=True)
row = {"time/step": 1, "rollout/score": 0.1, "rollout/kl": 0.2, "rollout/length": 3.0,
       "rollout/entropy": 1.0, "train/clip_fraction": 0.1}
(folder / "ppo/progress.json").write_text(json.dumps(row) + "\\n")
entry = {"score": 0.0, "score_std": 1.0, "kl": 0.0, "length": 3.0, "judge_positive": 0.5}
summary = {name: entry for name in ("sft", "ppo", "dpo", "best_of_16")}
summary |= {"preset": "tiny", "seed": 0, "seconds": 1.0, "peak_memory_mb": 1.0, "versions": {},
            "reward_model": {"heldout_accuracy": 0.5}, "sft_heldout_loss": 1.0, "stage_seconds": {}}
page = write_report(folder, summary, {"kl_coef": 0.05}, {name: [] for name in summary})
assert ">clip fraction<" in page.read_text()
""",
    ),
)


def apply(change: Change, checkout: Path) -> set[str]:
    """Make a change in a checkout; return the files that it touches."""
    for file, place, text in change.edits:
        path = checkout / file
        if not place:
            path.write_text(text)
            continue
        content = path.read_text()
        assert content.count(place) == 1, (file, place, content.count(place))
        path.write_text(content.replace(place, text + place))
    return {file for file, _, _ in change.edits}


def use(change: Change, folder: Path) -> subprocess.CompletedProcess[str]:
    """Make a change in a copy of the code, and run the script that uses it."""
    copy = folder / "checkout"
    for name in ("textrl", "agents", "envs"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True)
    apply(change, copy)
    (folder / "use.py").write_text(f"import sys\nsys.path.insert(0, {str(copy)!r})\n{change.use}")
    return subprocess.run(
        [sys.executable, "use.py"], cwd=folder, capture_output=True, text=True, timeout=300
    )


def main() -> None:
    """Print each change's files, and whether it works."""
    for change in CHANGES:
        with TemporaryDirectory() as folder:
            done = use(change, Path(folder))
        files = sorted({file for file, _, _ in change.edits})
        works = "works" if done.returncode == 0 else f"fails: {done.stderr.strip()[-200:]}"
        print(f"{change.name}: {len(files)} files ({', '.join(files)}), {works}")


if __name__ == "__main__":
    main()

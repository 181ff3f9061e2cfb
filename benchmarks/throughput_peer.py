"""textrl against TRL on the same models, data and machine: the ratio of their speeds, pair by pair.

    python benchmarks/throughput_peer.py                        SFT, reward, DPO on the small model
    python benchmarks/throughput_peer.py --model smollm2        the same on SmolLM2-135M
    python benchmarks/throughput_peer.py --stages ppo           against the last TRL that had PPO
    python benchmarks/throughput_peer.py --precision bfloat16   both libraries in bfloat16

TRL is installed in an environment of its own beside the results. Both libraries run in processes of
their own, a block of steps in turn, so that each pair shares the machine's mood. A block is an
epoch of the same data, each library in its own order of batches; DPO's reference pass, which we do
once, is added to every block. A second run feeds both the same batches and compares the losses.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from review_setup import ReviewSetup
from throughput_turns import LIBRARIES, Job, Worker, peer_python, start_workers

from textrl.demo.pretrained import smollm2_folder
from textrl.demo.reviews import load_reviews, review_pairs
from textrl.durable import write_json
from textrl.encoding import encode_prompt
from textrl.evaluation import sample_and_score
from textrl.models import load_causal_lm, load_tokenizer
from textrl.rewards import RewardModel
from textrl.trainers import RewardConfig, RewardTrainer, reward_model_from

PEERS = {"sft": "1.16.0", "reward": "1.16.0", "dpo": "1.16.0", "ppo": "1.11.0"}
"""The newest TRL; and the last one with PPO."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of a stage is run."""

    batch: int
    block: int
    """Optimiser steps a block: an epoch."""
    learning_rate: float


SIZES = {
    "tiny": Size(batch=32, block=16, learning_rate=3e-4),
    "smollm2": Size(batch=16, block=4, learning_rate=2e-5),
}
PPO = Size(batch=64, block=4, learning_rate=3e-4)
PROMPT_TOKENS, NEW_TOKENS = 7, 32
ITERATIONS = 30
KL_COEF, HIGHER_KL_COEF = 0.05, 0.07
"""Both libraries'; and ours once more, to compare the scores where our KL is the lower one."""
REWARD_PAIRS = 2048


def stage_rows(stage: str, count: int) -> list[dict[str, str]]:
    """Return the data of a stage: reviews, or pairs of them after a shared beginning."""
    reviews = [review for review in load_reviews() if len(review.text.split()) >= 8]
    if stage == "sft":
        return [{"text": review.text} for review in reviews[:count]]
    pairs = review_pairs(reviews, count, np.random.default_rng(0))
    rows = [{"chosen": str(p["chosen"]), "rejected": str(p["rejected"])} for p in pairs]
    if stage == "reward":
        return rows
    # The environment's prompts are the first words; a pair shares its chosen text's.
    result = []
    for row in rows:
        words, other = row["chosen"].split(), row["rejected"].split()
        result.append(
            {
                "prompt": " ".join(words[:4]),
                "chosen": " " + " ".join(words[4:]),
                "rejected": " " + " ".join(other[4:]),
            }
        )
    return result


def model_folder(stage: str, size: str, base: Path, scratch: Path) -> Path:
    """Return the checkpoint that a stage starts from: the SFT model, with a score head if need."""
    start = base / "sft" if size == "tiny" else smollm2_folder()
    if stage != "reward":
        return start
    target = scratch / f"classifier-{size}"
    if not (target / "config.json").exists():
        model, tokenizer = reward_model_from(start), load_tokenizer(start)
        model.config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return target


def trained_reward_model(base: Path, folder: Path) -> Path:
    """Return a reward model of the policy's size that gives raw scores, trained on the reviews."""
    target = folder / "reward_model"
    if not (target / "config.json").exists():
        model, tokenizer = reward_model_from(base / "sft"), load_tokenizer(base / "sft")
        rows = stage_rows("reward", REWARD_PAIRS)
        RewardTrainer(model, tokenizer, rows, RewardConfig(learning_rate=3e-4)).train()
        del model.config.score_mean, model.config.score_std  # TRL knows nothing of them
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return target


def compared(name: str, ours: Worker, theirs: Worker, pairs: int) -> dict[str, Any]:
    """Run both in turn, after one block that does not count; return every block and the ratios."""
    for worker in (ours, theirs):
        worker.turn()
    blocks: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for _ in range(pairs):
        blocks.append((ours.turn(), theirs.turn()))
        own, other = (block["seconds"] for block in blocks[-1])
        extra = ours.extra_seconds
        print(f"  {name}: {own:.2f} + {extra:.2f} s against {other:.2f} s", flush=True)
    ratios = [b["seconds"] / (a["seconds"] + ours.extra_seconds) for a, b in blocks]
    cpu = [b["cpu_seconds"] / (a["cpu_seconds"] + 2 * ours.extra_seconds) for a, b in blocks]
    last = blocks[-1]
    return {
        "stage": name,
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
        "cpu_ratio": float(np.median(cpu)),
        "seconds": [[a["seconds"], b["seconds"]] for a, b in blocks],
        "extra_seconds": ours.extra_seconds,
        "peak_mb": [last[0]["peak_mb"], last[1]["peak_mb"]],
    }


def fixed_data(stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """Compare a trainer on a fixed data set: speed in its own order, losses in the same order."""
    size, folder = SIZES[options.model], options.output_dir / f"{options.model}-{stage}"
    folder.mkdir(parents=True, exist_ok=True)
    job: Job = {
        "stage": stage,
        "model": str(model_folder(stage, options.model, options.base, folder)),
        "data": str(folder / "data.jsonl"),
        "data_in_order": str(folder / "data_in_order.jsonl"),
        "batch": size.batch,
        "block": size.block,
        "epochs": options.pairs + 1,
        "learning_rate": size.learning_rate,
        "threads": options.threads,
        "precision": options.precision,
        "in_order": False,
    }
    write_rows(job["data"], stage_rows(stage, size.batch * size.block))
    python = peer_python(options.output_dir, PEERS[stage])
    workers = start_workers(python, job, folder)
    found = compared(f"{options.model} {stage}", *workers, options.pairs)
    for worker in workers:
        worker.stop()
    workers = start_workers(python, job | {"in_order": True}, folder)
    ours, theirs = (worker.turn()["losses"] for worker in workers)
    for worker in workers:
        worker.stop()
    # The block ends at its last optimiser step, before we log that step's loss.
    differences = [abs(a - b) for a, b in zip(ours, theirs[: len(ours)], strict=True)]
    return found | {"loss_difference": max(differences), "losses": ours, "peer_losses": theirs}


def ppo(critic: str, options: argparse.Namespace) -> dict[str, Any]:
    """Compare PPO: episodes a second, peak memory, and what was learned from as many episodes."""
    base, folder = options.base, options.output_dir / f"ppo-{critic}"
    setup = ReviewSetup(base, options.threads)
    prompts = [
        prompt
        for prompt in setup.job.prompts(setup.job.train)
        if len(encode_prompt(setup.tokenizer, prompt)) == PROMPT_TOKENS
    ]
    folder.mkdir(parents=True, exist_ok=True)
    reward = trained_reward_model(base, folder)
    job: Job = {
        "stage": "ppo",
        "model": str(base / "sft"),
        "reward": str(reward),
        "data": str(folder / "data.jsonl"),
        "batch": PPO.batch,
        "block": PPO.block,
        "epochs": PPO.block,
        "iterations": max(ITERATIONS, options.pairs + 1),
        "learning_rate": PPO.learning_rate,
        "threads": options.threads,
        "precision": options.precision,
        "critic": critic,
        "kl_coef": KL_COEF,
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "output": str(folder / "trained"),
    }
    write_rows(job["data"], [{"prompt": prompt} for prompt in prompts])
    workers = start_workers(peer_python(options.output_dir, PEERS["ppo"]), job, folder)
    found = compared(f"ppo {critic}", *workers, options.pairs)
    for worker in workers:
        worker.finish()
    less_kl = folder / "less_kl"
    job |= {"library": "textrl", "kl_coef": HIGHER_KL_COEF, "output": str(less_kl)}
    Worker(Path(sys.executable), job, less_kl).finish()
    policies = {library: folder / "trained" / library for library in LIBRARIES}
    return found | learned(setup, reward, policies | {"less_kl": less_kl / "textrl"})


def learned(setup: ReviewSetup, reward: Path, policies: dict[str, Path]) -> dict[str, float]:
    """Return each policy's score and KL on held-out prompts."""
    found: dict[str, float] = {}
    heldout = setup.job.prompts(setup.job.heldout)[:256] * 4
    score = RewardModel.from_pretrained(reward)
    for library, policy in policies.items():
        drawn = sample_and_score(
            load_causal_lm(policy),
            setup.reference,
            setup.tokenizer,
            heldout,
            score,
            max_new_tokens=NEW_TOKENS,
            seed=1,
        )
        found[f"{library}_score"] = float(np.mean(drawn.scores))
        found[f"{library}_kl"] = float(drawn.kl.mean())
    return found


def write_rows(path: str, rows: list[dict[str, str]]) -> None:
    """Write JSON lines."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table of what has been measured."""
    lines = [
        "| stage | speed against TRL's (least to most) | CPU seconds | peak memory, MB | losses |",
        "|---|---|---|---|---|",
    ]
    for name, row in results.items():
        span = f"{row['ratio']:.2f}x ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})"
        memory = f"{row['peak_mb'][0]:.0f} against {row['peak_mb'][1]:.0f}"
        if "loss_difference" in row:
            learned = f"within {row['loss_difference']:.0e}"
            if "off_float32" in row:
                learned += f", {row['off_float32']:.1%} off float32's"
        else:
            names = (*LIBRARIES, "less_kl")
            learned = "; ".join(
                f"{name}: score {row[f'{name}_score']:.2f} at KL {row[f'{name}_kl']:.2f}"
                for name in names
            )
        lines.append(f"| {name} | {span} | {row['cpu_ratio']:.2f}x | {memory} | {learned} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the stages asked for; results.json keeps those of earlier calls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", default=["sft", "reward", "dpo"], choices=PEERS)
    parser.add_argument("--model", default="tiny", choices=SIZES)
    parser.add_argument("--base", type=Path, default=Path("runs/demo-tiny"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/throughput_peer"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    path = options.output_dir / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    note = "" if options.precision == "float32" else f", {options.precision}"
    for stage in options.stages:
        if stage == "ppo":
            for critic in ("value_head", "separate"):
                results[f"ppo, {critic}{note}"] = ppo(critic, options)
        else:
            plain = f"{stage}, {options.model}"
            found = results[plain + note] = fixed_data(stage, options)
            if note and len(results.get(plain, {"ratios": []})["ratios"]) == options.pairs:
                pairs = zip(found["losses"], results[plain]["losses"], strict=True)
                found["off_float32"] = max(abs(a - b) / abs(b) for a, b in pairs)
        write_json(path, results)
    print(table(results))


if __name__ == "__main__":
    main()

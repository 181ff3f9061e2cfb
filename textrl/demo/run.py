"""The demo's pipeline: InstructGPT's three steps, and DPO, on human ratings, end to end.

    data -> SFT -> reward model -> PPO | DPO -> evaluation on held-out prompts -> report

Each stage writes a folder with a plain checkpoint and its metrics. With --resume, an interrupted
run continues at the first stage that is not complete. The settings of all stages are in
`presets.py`; `report.py` makes the HTML report.
"""

import json
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from textrl import __version__
from textrl.agents import PPO, OnlineDPO
from textrl.agents.runs import saved_agent, train_in
from textrl.agents.text_agent import TextAgent
from textrl.checkpoint import Checkpoints
from textrl.config import AgentConfig
from textrl.demo.config import DemoConfig
from textrl.demo.models import fetch_models, starting_policy, starting_reward_model
from textrl.demo.presets import PRESETS, Preset
from textrl.demo.report import write_report
from textrl.demo.reviews import (
    Review,
    load_reviews,
    review_pairs,
    review_prompts,
    review_rankings,
    split_reviews,
)
from textrl.durable import write_json
from textrl.envs import TextRLHFVectorEnv
from textrl.evaluation import (
    Sampled,
    best_of,
    best_of_kl,
    sample_and_score,
    sample_completions,
    summarize,
)
from textrl.memory import keep_freed_memory, release_memory
from textrl.models import load_causal_lm, load_classifier, load_tokenizer
from textrl.paths import expanded
from textrl.resuming import is_complete
from textrl.rewards import Reward, RewardModel
from textrl.run_folder import check_run_dir, held, prepare_run_dir
from textrl.trainers import RewardTrainer, SFTTrainer

BEST_OF = 16
SAVE_EVERY, SAVE_MINUTES = 10, 10.0
"""Iterations and minutes between two saves of an agent."""
MODES = ("resume", "overwrite")
VERSIONS = ("torch", "transformers", "gymnasium", "stable-baselines3", "numpy")
SHOWN_SAMPLES = 12


@dataclass(frozen=True, kw_only=True)
class Job:
    """The data that all stages of a run share."""

    config: DemoConfig
    preset: Preset
    folder: Path
    train: list[Review]
    heldout: list[Review]

    def prompts(self, reviews: list[Review]) -> list[str]:
        """Return the first words of the reviews that are long enough to be continued."""
        return review_prompts(reviews, self.preset.prompt_words)


def run(config: DemoConfig) -> dict[str, Any]:
    """Run the pipeline and return its summary; all results are written to the run folder.

    Raises:
        UserError: the folder exists, or the data cannot be downloaded.
    """
    began = time.monotonic()
    check_run_dir(config.output_dir, resume=config.resume, overwrite=config.overwrite)
    torch.set_num_threads(config.threads)
    train, heldout = split_reviews(load_reviews())
    fetch_models(config)  # all downloads come before anything is deleted
    with held(expanded(config.output_dir)):
        return _run(config, train, heldout, began)


def _run(
    config: DemoConfig, train: list[Review], heldout: list[Review], began: float
) -> dict[str, Any]:
    folder = prepare_run_dir(
        config.output_dir,
        {name: value for name, value in asdict(config).items() if name not in MODES},
        resume=config.resume,
        overwrite=config.overwrite,
    )
    keep_freed_memory()
    preset = seeded(PRESETS[config.preset], config.seed)
    job = Job(config=config, preset=preset, folder=folder, train=train, heldout=heldout)
    stages: dict[str, Callable[[Job], dict[str, Any]]] = {
        "sft": train_sft,
        "reward_model": train_reward_model,
        "ppo": train_ppo,
        "dpo": train_dpo,
        "evaluation": evaluate,
    }
    results = {name: _stage(name, stage, job) for name, stage in stages.items()}
    summary = {
        "seconds": sum(result["seconds"] for result in results.values()),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seed": config.seed,
        "preset": config.preset,
        "versions": {"textrl": __version__, "python": platform.python_version()}
        | {name: version(name) for name in VERSIONS},
        "stage_seconds": {name: result["seconds"] for name, result in results.items()},
        "reward_model": {"heldout_accuracy": results["reward_model"]["heldout_accuracy"]},
        "sft_heldout_loss": results["sft"]["heldout_loss"],
        **results["evaluation"]["summary"],
    }
    if not config.resume:  # an uninterrupted run: its time includes imports and data
        summary["seconds"] = time.monotonic() - began
    write_json(folder / "summary.json", summary)
    report = write_report(folder, summary, asdict(preset), results["evaluation"]["samples"])
    print(table(summary))
    print(f"\nreport: {report}")
    return summary


def seeded(preset: Preset, seed: int) -> Preset:
    """Return the preset with one seed in all its stages."""
    return replace(
        preset,
        sft=replace(preset.sft, seed=seed),
        reward=replace(preset.reward, seed=seed),
        ppo=replace(preset.ppo, seed=seed),
        dpo=replace(preset.dpo, seed=seed),
    )


def train_sft(job: Job) -> dict[str, Any]:
    """Train the language model on the reviews as demonstrations."""
    folder = job.folder / "sft"
    texts = [review.text for review in job.train]
    policy, tokenizer = starting_policy(job.config, texts)
    trained = is_complete(folder)
    if trained:  # stopped behind the training, in its evaluation
        policy = load_causal_lm(folder, dtype="float32")
    reviews = job.train[: job.preset.sft_reviews]
    rows = [{"text": review.text} for review in reviews]
    trainer = SFTTrainer(policy, tokenizer, rows, job.preset.sft, output_dir=folder)
    if not trained:
        trainer.train(resume=Checkpoints(folder).exist())
    return trainer.evaluate_on([{"text": review.text} for review in job.heldout])


def train_reward_model(job: Job) -> dict[str, Any]:
    """Train the reward model on people's rankings, and standardise its scores on SFT samples."""
    folder, preset = job.folder / "reward_model", job.preset
    rng = np.random.default_rng(job.config.seed)
    rows = [
        row
        for _ in range(preset.reward_epochs)
        for row in review_rankings(job.train[: preset.reward_reviews], preset.ranking_size, rng)
    ]
    model, tokenizer = starting_reward_model(job.config, job.folder / "sft")
    trained = is_complete(folder)
    if trained:
        model = load_classifier(folder, dtype="float32")
    samples = sft_samples(job)
    trainer = RewardTrainer(
        model, tokenizer, rows, preset.reward, normalize_on=samples, output_dir=folder
    )
    numbers = (
        trainer.normalize(samples) if trained else trainer.train(resume=Checkpoints(folder).exist())
    )
    pairs = review_pairs(job.heldout, 8192, np.random.default_rng(job.config.seed), min_gap=0.5)
    texts = [review.text for review in job.heldout]
    found = trainer.reward_model()([""] * len(texts), texts)
    scores = dict(zip(texts, found, strict=True))
    right = [scores[str(pair["chosen"])] > scores[str(pair["rejected"])] for pair in pairs]
    certainty = [float(pair["certainty"]) for pair in pairs]
    return numbers | {
        "heldout_accuracy": float(np.mean(right)),
        "rater_agreement": float(np.mean(certainty)),
    }


def train_ppo(job: Job) -> dict[str, Any]:
    """Train the SFT model with PPO against the reward model and itself as reference."""
    rows = job.preset.ppo.episodes_per_iteration
    venv = environment(job, rows, group_size=job.preset.ppo_samples_per_prompt)
    agent = _trained(PPO, job, "ppo", venv, job.preset.ppo, job.preset.ppo_timesteps)
    return {"env_steps": agent.env_steps, "iterations": agent.iteration}


def train_dpo(job: Job) -> dict[str, Any]:
    """Train the SFT model with DPO on pairs sampled from it and ranked by the reward model."""
    config = job.preset.dpo
    rows = min(256, config.episodes_per_iteration)
    venv = environment(job, rows, group_size=config.samples_per_prompt)
    budget = config.episodes_per_iteration * job.preset.max_completion_tokens
    # one iteration: all pairs are of the SFT model
    agent = _trained(OnlineDPO, job, "dpo", venv, config, budget // 2)
    return {"env_steps": agent.env_steps}


def _trained(
    kind: type[TextAgent],
    job: Job,
    name: str,
    venv: TextRLHFVectorEnv,
    config: AgentConfig,
    total_timesteps: int,
) -> TextAgent:
    """Return an agent that was trained from the SFT model, or from the save of a stopped run."""
    folder = job.folder / name
    checkpoints = Checkpoints(folder, every=SAVE_EVERY, minutes=SAVE_MINUTES)
    save = saved_agent(folder)
    if save is not None:
        agent = kind.load(save, venv)
    else:
        agent = kind(load_causal_lm(job.folder / "sft", dtype="float32"), venv, config)
    train_in(folder, agent, total_timesteps, checkpoints, resumed_from=save)
    return agent


def evaluate(job: Job) -> dict[str, Any]:
    """Compare SFT, PPO, DPO and best-of-16 on held-out prompts."""
    analyzer = SentimentIntensityAnalyzer()

    def judge(prompts: list[str], completions: list[str]) -> list[float]:
        texts = [prompt + text for prompt, text in zip(prompts, completions, strict=True)]
        return [float(analyzer.polarity_scores(text)["compound"]) for text in texts]

    reference, tokenizer = load_causal_lm(job.folder / "sft"), load_tokenizer(job.folder / "sft")
    score = RewardModel.from_pretrained(job.folder / "reward_model")
    prompts = job.prompts(job.heldout)[: job.preset.eval_prompts]

    def sampled(name: str, repeats: int = 1) -> Sampled:
        return sample_and_score(
            load_causal_lm(job.folder / name),
            reference,
            tokenizer,
            [prompt for prompt in prompts for _ in range(repeats)],
            score,
            max_new_tokens=job.preset.max_completion_tokens,
            seed=job.config.seed,
        )

    found = {name: sampled(name) for name in ("sft", "ppo", "dpo")}
    found["best_of_16"] = best_of(sampled("sft", BEST_OF), BEST_OF)
    known_kl = {"sft": 0.0, "best_of_16": best_of_kl(BEST_OF)}
    return {
        "summary": {n: summarize(s, judge, kl=known_kl.get(n)) for n, s in found.items()},
        "samples": {n: shown_samples(s, tokenizer) for n, s in found.items()},
    }


def environment(
    job: Job, rows: int, group_size: int, reward: Reward | None = None
) -> TextRLHFVectorEnv:
    """Make the environment with the SFT model as reference, a reward, and the training prompts."""
    return TextRLHFVectorEnv(
        num_envs=rows,
        reference=job.folder / "sft",
        reward=reward or job.folder / "reward_model",
        prompts=job.prompts(job.train),
        kl_coef=job.preset.kl_coef,
        max_prompt_tokens=job.preset.max_prompt_tokens,
        max_completion_tokens=job.preset.max_completion_tokens,
        group_size=group_size,
        autoreset_mode="Disabled",
    )


def sft_samples(job: Job) -> list[str]:
    """Return texts sampled from the SFT model on training prompts."""
    model, tokenizer = load_causal_lm(job.folder / "sft"), load_tokenizer(job.folder / "sft")
    prompts = job.prompts(job.train)[: job.preset.normalize_samples]
    completions = sample_completions(
        model,
        tokenizer,
        prompts,
        max_new_tokens=job.preset.max_completion_tokens,
        seed=job.config.seed,
    )
    return [p + c for p, c in zip(prompts, completions, strict=True)]


def shown_samples(samples: Sampled, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return the first samples token by token, for the report."""
    return [
        {
            "prompt": samples.prompts[row],
            "completion": samples.completions[row],
            "tokens": [str(tokenizer.decode([token])) for token in samples.token_ids[row]],
            "kl": [
                own - ref
                for own, ref in zip(samples.logprobs[row], samples.ref_logprobs[row], strict=True)
            ],
            "score": samples.scores[row],
        }
        for row in range(min(SHOWN_SAMPLES, len(samples.prompts)))
    ]


def table(summary: dict[str, Any]) -> str:
    """Return the comparison as a text table."""
    columns = ("score", "score_std", "kl", "length", "judge_positive")
    lines = [f"{'':>12}" + "".join(f"{name:>16}" for name in columns)]
    for name in ("sft", "ppo", "dpo", "best_of_16"):
        lines.append(f"{name:>12}" + "".join(f"{summary[name][c]:16.3f}" for c in columns))
    accuracy = summary["reward_model"]["heldout_accuracy"]
    minutes, memory = summary["seconds"] / 60, summary["peak_memory_mb"] / 1024
    lines.append(
        f"reward model: {accuracy:.1%} of held-out human pairs   "
        f"{minutes:.1f} minutes   peak memory {memory:.1f} GB"
    )
    return "\n".join(lines)


def _stage(name: str, stage: Callable[[Job], dict[str, Any]], job: Job) -> dict[str, Any]:
    """Run a stage unless its results exist already; return them with the seconds that it took."""
    path = job.folder / name / "stage.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    began = time.monotonic()
    release_memory()
    results = stage(job) | {"seconds": time.monotonic() - began}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, results)
    return results

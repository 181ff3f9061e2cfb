"""The functions of the commands, called with their validated configurations."""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers

from textrl.benchmark.config import BenchmarkConfig
from textrl.cli.agent_commands import check_same_tokens, run_agent, run_outside_agent
from textrl.cli.agent_options import (
    AGENTS,
)
from textrl.cli.begin import begun, checked_folder, say_end
from textrl.cli.options import (
    BestOfConfig,
    EvaluateConfig,
    GenerateConfig,
    ModelConfig,
    NormalizeConfig,
    RunConfig,
)
from textrl.config import DPOConfig, RewardConfig, SFTConfig
from textrl.data import load_records, refuse_existing, write_lines
from textrl.demo.config import DemoConfig
from textrl.errors import UserError, needing
from textrl.resolve import resolve_reward
from textrl.rows import CHAT_COLUMNS, Records

if TYPE_CHECKING:
    from textrl.evaluation import Sampled
    from textrl.trainers import DPOTrainer, RewardTrainer, SFTTrainer

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()  # ours show the stage


def run_sft(model: ModelConfig, run: RunConfig, config: SFTConfig) -> None:
    """Train a language model on demonstrations."""
    from textrl.models import load_causal_lm, load_tokenizer
    from textrl.trainers import SFTTrainer

    folder = checked_folder(run)
    policy = load_causal_lm(model.model, dtype="float32", device=model.device)
    tokenizer = load_tokenizer(model.model)
    trainer = SFTTrainer(policy, tokenizer, model.data, config, output_dir=folder)
    _train(trainer, run, model, config)


def run_reward(
    model: ModelConfig, normalize: NormalizeConfig, run: RunConfig, config: RewardConfig
) -> None:
    """Train a reward model on pairs or rankings."""
    from textrl.models import load_tokenizer, moved, pick_device
    from textrl.trainers import RewardTrainer, reward_model_from

    folder = checked_folder(run)
    tokenizer = load_tokenizer(model.model)
    classifier = moved(reward_model_from(model.model, config.seed), pick_device(model.device))
    texts = None
    if normalize.normalize_on is not None:
        records = load_records(normalize.normalize_on)
        records.require("text")
        texts = [str(row["text"]) for row in records.rows]
    trainer = RewardTrainer(
        classifier, tokenizer, model.data, config, normalize_on=texts, output_dir=folder
    )
    _train(trainer, run, model, normalize, config)


def run_dpo(model: ModelConfig, run: RunConfig, config: DPOConfig) -> None:
    """Train a policy on preferences; the model before training is the reference."""
    from textrl.models import load_causal_lm, load_tokenizer
    from textrl.trainers import DPOTrainer

    folder = checked_folder(run)
    policy = load_causal_lm(model.model, dtype="float32", device=model.device)
    tokenizer = load_tokenizer(model.model)
    trainer = DPOTrainer(policy, tokenizer, model.data, config, output_dir=folder)
    _train(trainer, run, model, config)


def run_generate(config: GenerateConfig) -> None:
    """Write completions as JSON lines."""
    from textrl.chat import prompt_of
    from textrl.evaluation import sample_completions
    from textrl.models import load_causal_lm, load_tokenizer

    refuse_existing(config.output)
    records = load_records(config.prompts)
    records.require("prompt")
    model, tokenizer = load_causal_lm(config.model), load_tokenizer(config.model)
    repeated = records.subset(
        row for row in range(len(records)) for _ in range(config.samples_per_prompt)
    )
    completions = sample_completions(
        model,
        tokenizer,
        [prompt_of(*row) for row in zip(repeated.rows, repeated.places, strict=True)],
        max_new_tokens=config.max_completion_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )
    rows = [
        {name: row[name] for name in ("prompt", *CHAT_COLUMNS) if name in row}
        | {"completion": completion}
        for row, completion in zip(repeated.rows, completions, strict=True)
    ]
    write_lines(rows, config.output)


def run_best_of_n(config: BestOfConfig) -> None:
    """Write the best of n completions of each prompt as JSON lines, and what that has gained."""
    from textrl.evaluation import best_of, best_of_kl

    refuse_existing(config.output)
    records = load_records(config.prompts)
    records.require("prompt")
    repeated = records.subset(row for row in range(len(records)) for _ in range(config.n))
    samples = _scored(config, config.model, repeated)
    best = best_of(samples, config.n)
    rows = [
        {name: row[name] for name in ("prompt", *CHAT_COLUMNS) if name in row}
        | {"completion": completion, "score": score}
        for row, completion, score in zip(records.rows, best.completions, best.scores, strict=True)
    ]
    write_lines(rows, config.output)
    print(
        f"score {np.mean(samples.scores):.3f} of one completion, {np.mean(best.scores):.3f} of the "
        f"best of {config.n}; its KL to the model is at most {best_of_kl(config.n):.2f} nats per "
        f"sequence",
        file=sys.stderr,
    )


def run_evaluate(config: EvaluateConfig) -> None:
    """Print the score, KL and length of a policy on prompts as JSON."""
    from textrl.evaluation import summarize

    check_same_tokens(config.model, config.reference)
    records = load_records(config.prompts)
    records.require("prompt")
    print(json.dumps(summarize(_scored(config, config.reference, records)), indent=2))


def _scored(config: BestOfConfig | EvaluateConfig, reference: str, records: Records) -> "Sampled":
    """Return one scored completion for each row; the reference may be the model itself."""
    from textrl.chat import Chat, prompt_of
    from textrl.evaluation import sample_and_score
    from textrl.models import load_causal_lm, load_tokenizer
    from textrl.rewards import make_scorer

    scorer = make_scorer(resolve_reward(config.reward))
    if scorer.has_dense or scorer.has_groups:
        raise UserError(
            "here each completion is scored as a text, and the reward is dense or compares a "
            "group; give one that scores each text"
        )
    columns = records.columns_but("prompt")
    prompts = [prompt_of(*row) for row in zip(records.rows, records.places, strict=True)]
    chats = [prompt if isinstance(prompt, Chat) else None for prompt in prompts]
    policy = load_causal_lm(config.model)
    return sample_and_score(
        policy,
        policy if reference == config.model else load_causal_lm(reference),
        load_tokenizer(config.model),
        prompts,
        lambda texts, completions: scorer(texts, completions, columns, chats).tolist(),
        max_new_tokens=config.max_completion_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )


def run_benchmark(config: BenchmarkConfig, run: RunConfig) -> None:
    """Train and evaluate several agents on one task."""
    from textrl.benchmark import run as benchmark

    checked_folder(run)
    if run.track is not None:
        raise UserError("a benchmark trains in processes of its own, which no tracker follows")
    benchmark.check(config)
    with begun(run, config) as folder:
        rows = benchmark.run(config, folder)
    print(benchmark.table(rows))
    print(f"saved to {folder}")
    if any("error" in row for row in rows):
        raise SystemExit(1)


def run_demo(config: DemoConfig) -> None:
    """Run the whole pipeline on the movie reviews."""
    with needing("demo"):
        from textrl.demo.run import run
    run(config)


def _train(
    trainer: "SFTTrainer | RewardTrainer | DPOTrainer", run: RunConfig, *configs: Any
) -> None:
    """Start or continue the run of a trainer, unless it is already complete."""
    from textrl.resuming import check_resume, is_complete

    folder = checked_folder(run)
    complete = run.resume and is_complete(folder)
    if not complete and not run.overwrite:  # before a folder is made
        check_resume(folder, resume=run.resume)
    with begun(run, *configs):
        if complete:
            print(f"{folder} is complete; nothing to resume")
            return
        metrics = trainer.train(resume=run.resume, log_table=run.log_table, track=run.track)
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")
    say_end(folder)


RUN: dict[str, Callable[..., None]] = {
    "sft": run_sft,
    "reward": run_reward,
    **{name: partial(run_agent, name) for name in AGENTS},
    "train": run_outside_agent,
    "dpo": run_dpo,
    "generate": run_generate,
    "best_of_n": run_best_of_n,
    "evaluate": run_evaluate,
    "benchmark": run_benchmark,
    "demo": run_demo,
}

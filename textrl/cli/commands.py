"""The functions of the commands, called with their validated configurations."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers

from textrl.benchmark.config import BenchmarkConfig
from textrl.cli.agent_options import (
    AGENTS,
    AgentRunConfig,
    DemonstrationsConfig,
    OutsideAgentConfig,
    StatesConfig,
)
from textrl.cli.options import (
    EnvConfig,
    EvaluateConfig,
    GenerateConfig,
    ModelConfig,
    NormalizeConfig,
    RunConfig,
)
from textrl.config import AgentConfig, DPOConfig, RewardConfig, SFTConfig
from textrl.data import load_records, refuse_existing, write_lines
from textrl.demo.config import DemoConfig
from textrl.errors import UserError, hide_password, needing
from textrl.metrics import open_logger
from textrl.paths import expanded
from textrl.resolve import resolve, resolve_reward
from textrl.rows import CHAT_COLUMNS
from textrl.run_folder import check_run_dir, held, prepare_run_dir

if TYPE_CHECKING:
    from textrl.envs import TextRLHFVectorEnv
    from textrl.trainers import DPOTrainer, RewardTrainer, SFTTrainer

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()  # ours show the stage


def run_sft(model: ModelConfig, run: RunConfig, config: SFTConfig) -> None:
    """Train a language model on demonstrations."""
    from textrl.models import load_causal_lm, load_tokenizer
    from textrl.trainers import SFTTrainer

    folder = _checked(run)
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

    folder = _checked(run)
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

    folder = _checked(run)
    policy = load_causal_lm(model.model, dtype="float32", device=model.device)
    tokenizer = load_tokenizer(model.model)
    trainer = DPOTrainer(policy, tokenizer, model.data, config, output_dir=folder)
    _train(trainer, run, model, config)


def run_agent(
    name: str,
    policy: AgentRunConfig,
    env: EnvConfig,
    run: RunConfig,
    states: StatesConfig,
    config: AgentConfig,
    ptx: DemonstrationsConfig | None = None,
) -> None:
    """Train a policy with one of our agents; only PPO has `ptx`."""
    from textrl.agents.base import factory_of
    from textrl.agents.runs import saved_agent, train_in
    from textrl.checkpoint import Checkpoints
    from textrl.models import load_causal_lm

    if name == "online_dpo" and env.kl_coef != EnvConfig.kl_coef:
        raise UserError("online_dpo weighs the KL to the reference by --beta; leave out --kl_coef")
    kind: Any = factory_of(name)  # a class of ours
    folder, venv = _checked(run), _environment(policy, env)
    extra = {} if ptx is None else {"demonstrations": ptx.demonstrations}
    with held(folder) if folder.exists() else nullcontext():
        saved = saved_agent(folder) if run.resume else None
        if saved is not None:
            agent = _resumed(kind, saved, venv, config, extra)
        elif run.resume:
            raise UserError(f"{folder} holds no saved agent to resume; start without --resume")
        else:
            model = load_causal_lm(policy.model, dtype="float32", device=policy.device)
            agent = kind(model, venv, config, **extra)
        with _begun(run, policy, env, states, config, *([ptx] if ptx else [])):
            checkpoints = Checkpoints(
                folder,
                every=states.save_every,
                minutes=states.save_minutes,
                keep=states.keep_saves,
                best_by=states.keep_best,
            )
            train_in(
                folder,
                agent,
                policy.total_timesteps,
                checkpoints,
                resumed_from=saved,
                log_table=run.log_table,
            )
    print(f"saved to {folder}")


def _resumed(
    kind: Any, saved: Path, venv: "TextRLHFVectorEnv", config: AgentConfig, extra: dict[str, Any]
) -> Any:
    """Return the saved agent; its configuration and prompts must equal those of this command."""
    from textrl.agents.saving import OtherEnvironment

    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherEnvironment)
        try:
            agent = kind.load(saved, venv, **extra)
        except OtherEnvironment as warning:
            reason = str(warning).removeprefix("its prompts start afresh: ")
            raise UserError(f"--resume: {reason}") from None
    for name, value in asdict(config).items():
        if (before := getattr(agent.config, name)) != value:
            raise UserError(f"--resume with another {name}: the run has {before!r}, not {value!r}")
    return agent


def run_outside_agent(
    outside: OutsideAgentConfig, policy: AgentRunConfig, env: EnvConfig, run: RunConfig
) -> None:
    """Train a policy with an agent from outside textrl."""
    from textrl.models import load_causal_lm

    folder = _checked(run)
    if run.resume:
        raise UserError(f"--resume is for agents of ours; {outside.agent} starts anew")
    venv = _environment(policy, env)
    model = load_causal_lm(policy.model, dtype="float32", device=policy.device)
    agent = resolve(outside.agent)(model, venv)
    with _begun(run, outside, policy, env):
        with open_logger(folder, table=run.log_table) as logger:
            if hasattr(agent, "set_logger"):
                agent.set_logger(logger)
            agent.learn(policy.total_timesteps, progress_bar=True)
        agent.save(folder)
    print(f"saved to {folder}")


def check_same_tokens(model: str, reference: str) -> None:
    """Raise UserError if the reference has a tokenizer with a different vocabulary."""
    from textrl.models import load_tokenizer

    try:
        theirs = load_tokenizer(reference).get_vocab()
    except UserError:  # a folder of a model alone
        return
    if theirs != load_tokenizer(model).get_vocab():
        raise UserError(
            f"{reference} reads other tokens than {model}, so that a KL between them means "
            f"nothing; give a reference with the same tokenizer"
        )


def _environment(policy: AgentRunConfig, env: EnvConfig) -> "TextRLHFVectorEnv":
    from textrl.envs import TextRLHFVectorEnv
    from textrl.models import load_tokenizer

    check_same_tokens(policy.model, env.reference or policy.model)
    return TextRLHFVectorEnv(
        num_envs=policy.num_envs,
        reference=env.reference or policy.model,
        tokenizer=load_tokenizer(policy.model),
        reward=resolve_reward(env.reward),
        prompts=env.prompts,
        **env.arguments(),
        device=policy.device,
        autoreset_mode="Disabled",
    )


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


def run_evaluate(config: EvaluateConfig) -> None:
    """Print the score, KL and length of a policy on prompts as JSON."""
    from textrl.chat import Chat, prompt_of
    from textrl.evaluation import sample_and_score, summarize
    from textrl.models import load_causal_lm, load_tokenizer
    from textrl.rewards import make_scorer

    check_same_tokens(config.model, config.reference)
    records = load_records(config.prompts)
    records.require("prompt")
    scorer = make_scorer(resolve_reward(config.reward))
    columns = records.columns_but("prompt")
    prompts = [prompt_of(*row) for row in zip(records.rows, records.places, strict=True)]
    chats = [prompt if isinstance(prompt, Chat) else None for prompt in prompts]
    samples = sample_and_score(
        load_causal_lm(config.model),
        load_causal_lm(config.reference),
        load_tokenizer(config.model),
        prompts,
        lambda texts, completions: scorer(texts, completions, columns, chats).tolist(),
        max_new_tokens=config.max_completion_tokens,
        temperature=config.temperature,
        seed=config.seed,
    )
    print(json.dumps(summarize(samples), indent=2))


def run_benchmark(config: BenchmarkConfig, run: RunConfig) -> None:
    """Train and evaluate several agents on one task."""
    from textrl.benchmark import run as benchmark

    _checked(run)
    benchmark.check(config)
    with _begun(run, config) as folder:
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


def _checked(run: RunConfig) -> Path:
    """Return the path of the run folder; nothing is written or deleted before all input is read."""
    return check_run_dir(run.output_dir, resume=run.resume, overwrite=run.overwrite)


@contextmanager
def _begun(run: RunConfig, *configs: Any) -> Iterator[Path]:
    """Make the run folder, with the resolved configuration in it, and hold it for this process."""
    settings = {key: value for part in configs for key, value in asdict(part).items()}
    for name, value in settings.items():
        if isinstance(value, str):
            settings[name] = hide_password(value)
        elif isinstance(value, tuple):  # as YAML reads it back
            settings[name] = list(value)
    settings |= {"output_dir": run.output_dir, "log_table": run.log_table}
    inputs = [value for name, value in settings.items() if isinstance(value, str)]
    inputs.remove(run.output_dir)
    with held(expanded(run.output_dir)):
        yield prepare_run_dir(
            run.output_dir, settings, resume=run.resume, overwrite=run.overwrite, inputs=inputs
        )


def _train(
    trainer: "SFTTrainer | RewardTrainer | DPOTrainer", run: RunConfig, *configs: Any
) -> None:
    """Start or continue the run of a trainer, unless it is already complete."""
    from textrl.resuming import check_resume, is_complete

    folder = _checked(run)
    complete = run.resume and is_complete(folder)
    if not complete and not run.overwrite:  # before a folder is made
        check_resume(folder, resume=run.resume)
    with _begun(run, *configs):
        if complete:
            print(f"{folder} is complete; nothing to resume")
            return
        metrics = trainer.train(resume=run.resume, log_table=run.log_table)
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")
    print(f"saved to {folder}")


RUN: dict[str, Callable[..., None]] = {
    "sft": run_sft,
    "reward": run_reward,
    **{name: partial(run_agent, name) for name in AGENTS},
    "train": run_outside_agent,
    "dpo": run_dpo,
    "generate": run_generate,
    "evaluate": run_evaluate,
    "benchmark": run_benchmark,
    "demo": run_demo,
}

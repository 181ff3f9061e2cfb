"""The functions of the commands that train a policy with an agent."""

import warnings
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textrl.cli.agent_options import (
    AgentRunConfig,
    DemonstrationsConfig,
    HeldoutConfig,
    OutsideAgentConfig,
    StatesConfig,
)
from textrl.cli.begin import begun, checked_folder, say_end
from textrl.cli.options import (
    EnvConfig,
    RunConfig,
)
from textrl.config import AgentConfig
from textrl.errors import UserError
from textrl.metrics import open_logger
from textrl.resolve import resolve, resolve_reward
from textrl.run_folder import held
from textrl.trackers import trackers

if TYPE_CHECKING:
    from textrl.agents import HeldoutEvaluation
    from textrl.envs import TextRLHFVectorEnv


def run_agent(
    name: str,
    policy: AgentRunConfig,
    env: EnvConfig,
    run: RunConfig,
    states: StatesConfig,
    heldout: HeldoutConfig,
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
    folder, venv = checked_folder(run), _environment(policy, env)
    evaluation = _evaluation(venv, env, states, heldout, folder)
    extra = {} if ptx is None else {"demonstrations": ptx.demonstrations}
    with held(folder) if folder.exists() else nullcontext():
        saved = saved_agent(folder) if run.resume else None
        if saved is not None:
            agent = _resumed(kind, saved, venv, config, extra)
        elif run.resume:
            raise UserError(f"{folder} holds no saved agent to resume; start anew with --overwrite")
        else:
            model = load_causal_lm(policy.model, dtype="float32", device=policy.device)
            agent = kind(model, venv, config, **extra)
        with begun(run, policy, env, states, heldout, config, *([ptx] if ptx else [])):
            checkpoints = Checkpoints(
                folder,
                every=states.save_every,
                minutes=states.save_minutes,
                keep=states.keep_saves,
                best_by=None if _of_heldout(states) else states.keep_best,
            )
            train_in(
                folder,
                agent,
                policy.total_timesteps,
                checkpoints,
                callback=evaluation,
                resumed_from=saved,
                log_table=run.log_table,
                track=run.track,
            )
    say_end(folder)


def _of_heldout(states: StatesConfig) -> bool:
    """Return whether the best agent is the one of a measurement on held-out prompts."""
    return states.keep_best is not None and states.keep_best.startswith("heldout/")


def _evaluation(
    venv: "TextRLHFVectorEnv",
    env: EnvConfig,
    states: StatesConfig,
    heldout: HeldoutConfig,
    folder: Path,
) -> "HeldoutEvaluation | None":
    """Return the measurements on held-out prompts, if there are such prompts.

    They have the models of the environment in which the policy is trained, loaded once.
    """
    from textrl.agents import HeldoutEvaluation
    from textrl.envs import TextRLHFVectorEnv

    if heldout.heldout is None:
        if _of_heldout(states):
            raise UserError(
                f"keep_best is {states.keep_best!r}, and nothing is held out: --heldout"
            )
        return None
    group_size = env.group_size if venv.needs_whole_groups else 1
    kept_apart = TextRLHFVectorEnv(
        num_envs=heldout.eval_episodes,
        reference=venv.reference,
        tokenizer=venv.tokenizer,
        reward=venv.reward_model or resolve_reward(env.reward),
        prompts=heldout.heldout,
        **env.arguments() | {"group_size": group_size},
        device=venv.reference.device,
        autoreset_mode="Disabled",
    )
    return HeldoutEvaluation(
        kept_apart,
        every=heldout.eval_every,
        keep_best=states.keep_best if _of_heldout(states) else None,
        best_folder=folder / "best" if _of_heldout(states) else None,
        stop_at_kl=heldout.stop_at_kl,
        samples_file=folder / "samples.jsonl",
    )


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

    folder = checked_folder(run)
    if run.resume:
        raise UserError(f"--resume is for agents of ours; {outside.agent} starts anew")
    venv = _environment(policy, env)
    model = load_causal_lm(policy.model, dtype="float32", device=policy.device)
    agent = resolve(outside.agent)(model, venv)
    with begun(run, outside, policy, env):
        more = trackers(run.track, folder)
        with open_logger(folder, table=run.log_table, more=more) as logger:
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

"""How an agent is saved to a folder and read back.

A folder holds the policy as a plain transformers checkpoint, `agent.json` (which agent it is, its
configuration), `trainer_state/` (what it takes to go on) and, of an adapted policy, `adapter/`.
"""

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

from transformers import PreTrainedModel

from textrl.adapters import save_adapter
from textrl.agents.base import AnyVectorEnv
from textrl.agents.text_env import TextEnv
from textrl.checkpoint import STATE_FILE, load_state, read_agent, save_model, save_state
from textrl.config import AgentConfig
from textrl.durable import write_json
from textrl.errors import UserError
from textrl.models import load_policy

STATE = Path("trainer_state") / STATE_FILE
"""Where a saved agent's state lies in its folder."""

UNSHOWN = ("reference", "reward", "demonstrations")
"""What is compared by digests, which tell a person nothing."""


class OtherEnvironment(UserWarning):
    """A loaded agent's environment is not the one that it was saved in; what differs is named."""


class Saved(Protocol):
    """What is asked of an agent here (`TextAgent` has it)."""

    name: ClassVar[str]
    policy: PreTrainedModel
    env: TextEnv

    @property
    def config(self) -> AgentConfig:
        """Its configuration."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the weights."""

    def task_digest(self) -> dict[str, str]:
        """Return what the agent's numbers depend on beside its configuration, by name."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""


def write_agent(agent: Saved, folder: Path) -> None:
    """Write the policy, the agent's configuration and its state to a folder."""
    save_model(agent.policy, agent.env.tokenizer, folder)
    save_adapter(agent.policy, agent.env.tokenizer, folder)
    frozen = [name for name, p in agent.policy.named_parameters() if not p.requires_grad]
    saved = {"agent": agent.name, "config": asdict(agent.config), "frozen": frozen}
    write_json(folder / "agent.json", saved)
    state = agent.state() | {"task": agent.task_digest()}
    prompts = agent.env.prompt_state()
    save_state(folder / STATE, state if prompts is None else state | {"prompts": prompts})


def read_policy(kind: Any, folder: Path, venv: AnyVectorEnv) -> tuple[PreTrainedModel, AgentConfig]:
    """Return the policy and the configuration that an agent of this class wrote to a folder.

    Raises:
        UserError: the folder holds no agent of this kind.
    """
    saved, config = read_agent(folder, kind.name, kind.config_class)
    device = TextEnv(venv).reference.device
    return load_policy(folder, device, saved.get("frozen", [])), config


def restore(agent: Saved, folder: Path) -> dict[str, Any]:
    """Let an agent go on from the state that lies in a folder; return the state.

    Raises:
        UserError: it is missing or damaged.
    """
    state = load_state(folder / STATE)
    agent.load_state(state)
    if "prompts" in state:
        try:
            agent.env.load_prompt_state(state["prompts"])
        except UserError as error:
            warnings.warn(f"its prompts start afresh: {error}", OtherEnvironment, stacklevel=3)
    present: dict[str, Any] = dict(agent.task_digest())
    saved = dict(state["task"])
    if asdict(agent.config).get("kl_target") is None:  # else the agent steers it
        present["kl_coef"], saved["kl_coef"] = agent.env.kl_coef, state["kl_coef"]
    for name in sorted(present.keys() & saved.keys()):
        if present[name] != saved[name]:
            shown = "" if name in UNSHOWN else f": {present[name]}, not {saved[name]}"
            message = f"the environment has another {name} than the agent was saved with{shown}"
            warnings.warn(message, OtherEnvironment, stacklevel=3)
    return state

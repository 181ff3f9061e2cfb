"""textrl: reinforcement learning from human feedback as a Gymnasium problem.

Importing this package registers `TextRLHF-v0`, `TextRLHFCandidates-v0`, `TextTurns-v0`, the
worlds (`textrl/GuessNumber-v0` and so on, see `textrl.envs.worlds`) and the tasks on them
(`TextRLHF/GuessNumber-v0`, see `textrl.task_ids`). It loads neither torch nor transformers; import
the parts by name (`from textrl.agents import PPO`).
"""

import gymnasium as gym

from textrl.task_ids import TASKS

__version__ = "0.1.0"

if "TextRLHF-v0" not in gym.registry:  # importing twice (tests, reloads) must not warn
    gym.register(
        id="TextRLHF-v0",
        entry_point="textrl.envs.text_rlhf:TextRLHFEnv",
        vector_entry_point="textrl.envs.vector:TextRLHFVectorEnv",
    )
    gym.register(
        id="TextRLHFCandidates-v0",
        entry_point="textrl.envs.candidates:TextCandidatesEnv",
        vector_entry_point="textrl.envs.candidates:vector_candidates",
    )
    gym.register(
        id="TextTurns-v0",
        entry_point="textrl.envs.text_turns:TextTurnsEnv",
        vector_entry_point="textrl.envs.text_turns:TextTurnsVectorEnv",
    )

WORLDS = {
    "textrl/GuessNumber-v0": ("guess_number:GuessNumber", 0.95),
    "textrl/Mastermind-v0": ("mastermind:Mastermind", 0.9),
    "textrl/Calculator-v0": ("calculator:Calculator", 0.9),
    "textrl/HiddenFact-v0": ("hidden_fact:HiddenFact", 0.95),
    "textrl/ReverseText-v0": ("reverse_text:ReverseText", 0.8),
    "textrl/Arithmetic-v0": ("arithmetic:Arithmetic", 0.95),
    "textrl/LetterCount-v0": ("letter_count:LetterCount", 0.9),
    "textrl/ProbeConstant-v0": ("probes:ProbeConstant", 0.95),
    "textrl/ProbePrompt-v0": ("probes:ProbePrompt", 0.95),
    "textrl/ProbeDelayed-v0": ("probes:ProbeDelayed", 0.95),
    "textrl/ProbeLaterTurn-v0": ("probes:ProbeLaterTurn", 0.95),
}
"""The class of each world and its `reward_threshold`: the mean return of a good policy."""

for _id, (_place, _threshold) in WORLDS.items():
    if _id not in gym.registry:
        gym.register(
            id=_id,
            entry_point=f"textrl.envs.worlds.{_place}",
            reward_threshold=_threshold,
        )

for _id, _task in TASKS.items():
    if _id in gym.registry:
        continue
    if _task.world is None:
        gym.register(
            id=_id,
            entry_point="textrl.demo.task:reviews",
            vector_entry_point="textrl.demo.task:vector_reviews",
            reward_threshold=_task.reward_threshold,
        )
    else:
        gym.register(
            id=_id,
            entry_point="textrl.envs.text_turns:TextTurnsEnv",
            vector_entry_point="textrl.envs.text_turns:TextTurnsVectorEnv",
            reward_threshold=WORLDS[_task.world][1],
            kwargs=_task.arguments,
        )

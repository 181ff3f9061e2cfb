"""The environments: text generation behind Gymnasium's interface. Import them as `textrl.envs`."""

if __name__ == "envs":
    raise ModuleNotFoundError("import textrl.envs, not envs: this folder is mapped into textrl")

from textrl.envs.candidates import CandidateActions, VectorCandidateActions
from textrl.envs.tasks import tiny_model, tiny_prompts, tiny_score, tiny_tokenizer
from textrl.envs.text_rlhf import TextRLHFEnv
from textrl.envs.vector import TextRLHFVectorEnv
from textrl.envs.wrappers import PolicyKL

__all__ = [
    "CandidateActions",
    "PolicyKL",
    "TextRLHFEnv",
    "TextRLHFVectorEnv",
    "VectorCandidateActions",
    "tiny_model",
    "tiny_prompts",
    "tiny_score",
    "tiny_tokenizer",
]

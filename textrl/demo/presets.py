"""The presets of the demo: the models, the length of each stage, and all hyper-parameters."""

from dataclasses import dataclass, replace

from textrl.config import OnlineDPOConfig, PPOConfig, RewardConfig, SFTConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The settings of one size of the demo."""

    prompt_words: int
    """Number of words at the start of a review that are the prompt of a policy."""
    max_prompt_tokens: int
    max_completion_tokens: int
    sft: SFTConfig
    sft_reviews: int | None
    """Number of reviews that are used as demonstrations; None for all."""
    reward: RewardConfig
    reward_reviews: int | None
    """Number of reviews that are ranked; None for all."""
    reward_epochs: int
    """Number of times that every review is ranked, each time among other reviews."""
    ranking_size: int
    """Number of reviews in one ranking."""
    normalize_samples: int
    """Number of samples of the SFT policy on which the scores get mean 0 and std 1."""
    kl_coef: float
    ppo: PPOConfig
    ppo_samples_per_prompt: int
    """Number of episodes per prompt in PPO's batches."""
    ppo_timesteps: int
    """Number of tokens that PPO trains for."""
    dpo: OnlineDPOConfig
    eval_prompts: int


PRESETS = {
    "tiny": Preset(
        prompt_words=4,
        max_prompt_tokens=32,
        max_completion_tokens=24,
        sft=SFTConfig(
            learning_rate=2e-3,
            num_epochs=2,
            minibatch_size=32,
            micro_batch_tokens=1024,
            max_length=96,
            weight_decay=0.1,
        ),
        sft_reviews=None,
        reward=RewardConfig(
            learning_rate=1e-3,
            minibatch_size=4,
            micro_batch_tokens=16_384,
            max_length=96,
            weight_decay=0.1,
        ),
        reward_reviews=None,
        reward_epochs=2,
        ranking_size=16,
        normalize_samples=512,
        kl_coef=0.1,
        ppo=PPOConfig(
            learning_rate=3e-4,
            episodes_per_iteration=256,
            minibatch_size=64,
            micro_batch_tokens=1024,
            num_epochs=2,
            gae_lambda=1.0,
            critic="value_head",
        ),
        ppo_samples_per_prompt=4,
        ppo_timesteps=90_000,
        dpo=OnlineDPOConfig(
            learning_rate=2.5e-4,
            episodes_per_iteration=4096,
            samples_per_prompt=8,
            minibatch_size=32,
            micro_batch_tokens=1024,
            num_epochs=4,
            beta=0.1,
        ),
        eval_prompts=320,
    ),
    "smollm2": Preset(
        prompt_words=4,
        max_prompt_tokens=32,
        max_completion_tokens=24,
        sft=SFTConfig(
            learning_rate=5e-5,
            num_epochs=1,
            minibatch_size=16,
            micro_batch_tokens=512,
            max_length=64,
        ),
        sft_reviews=768,
        reward=RewardConfig(
            learning_rate=1e-4,
            minibatch_size=4,
            micro_batch_tokens=1024,
            max_length=64,
        ),
        reward_reviews=None,
        reward_epochs=1,
        ranking_size=16,
        normalize_samples=128,
        kl_coef=0.1,
        ppo=PPOConfig(
            learning_rate=2e-5,
            episodes_per_iteration=64,
            minibatch_size=32,
            micro_batch_tokens=512,
            num_epochs=2,
            gae_lambda=1.0,
            critic="value_head",
            critic_learning_rate=1e-3,
        ),
        ppo_samples_per_prompt=4,
        ppo_timesteps=14_000,
        dpo=OnlineDPOConfig(
            learning_rate=3e-5,
            episodes_per_iteration=512,
            samples_per_prompt=8,
            minibatch_size=8,
            micro_batch_tokens=512,
            num_epochs=2,
            beta=0.1,
        ),
        eval_prompts=64,
    ),
}
TINY = PRESETS["tiny"]
PRESETS["quick"] = replace(
    TINY,
    sft=replace(TINY.sft, num_epochs=1),
    reward_epochs=1,
    ppo_timesteps=50_000,
    dpo=replace(TINY.dpo, num_epochs=2),
    eval_prompts=160,
)

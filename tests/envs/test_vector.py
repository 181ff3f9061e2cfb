import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.envs import TextRLHFVectorEnv, tiny_model, tiny_score, tiny_tokenizer
from textrl.errors import UserError

EOS, BUDGET, ROWS = 2, 6, 4


def make(rows: int = ROWS, **kwargs) -> TextRLHFVectorEnv:
    venv = gym.make_vec("TextRLHF-v0", num_envs=rows, max_completion_tokens=BUDGET, **kwargs)
    assert isinstance(venv, TextRLHFVectorEnv)  # vector_entry_point, not copies of the single env
    return venv


def random_actions(rng: np.random.Generator, rows: int = ROWS) -> np.ndarray:
    actions = rng.integers(3, 29, rows)
    actions[rng.random(rows) < 0.15] = EOS
    return actions


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_rows_equal_single_environments(mode: AutoresetMode) -> None:
    """Equal seeds and actions give equal trajectories, whatever the autoreset mode."""
    venv = make(autoreset_mode=mode.value)
    singles = [gym.make("TextRLHF-v0", max_completion_tokens=BUDGET) for _ in range(ROWS)]
    observations, infos = venv.reset(seed=3)
    rows = [env.reset(seed=3 + k) for k, env in enumerate(singles)]
    assert infos["prompt"].tolist() == [info["prompt"] for _, info in rows]
    current = [observation for observation, _ in rows]
    rng, over, episodes = np.random.default_rng(0), np.zeros(ROWS, dtype=bool), 0
    for _ in range(40):
        for k in range(ROWS):
            for name, array in current[k].items():
                assert (observations[name][k] == array).all()
        if mode is AutoresetMode.DISABLED and over.any():
            observations, _ = venv.reset(options={"reset_mask": over})
            for k in over.nonzero()[0]:
                current[k], _ = singles[k].reset()
            over = np.zeros(ROWS, dtype=bool)
        actions = random_actions(rng)
        observations, rewards, terminated, truncated, infos = venv.step(actions)
        for k, env in enumerate(singles):
            if mode is AutoresetMode.NEXT_STEP and over[k]:
                current[k], _ = env.reset()
                assert rewards[k] == 0.0
                assert not terminated[k]
                assert not infos["_ref_logprob"][k]
                continue
            current[k], reward, done, _, info = env.step(actions[k])
            assert rewards[k] == pytest.approx(reward, abs=1e-5)
            assert terminated[k] == done
            if done:
                episodes += 1
                assert infos["_finish_reason"][k]
                assert infos["finish_reason"][k] == info["finish_reason"]
                assert infos["score"][k] == info["score"]
                if mode is AutoresetMode.SAME_STEP:
                    final = infos["final_obs"]["input_ids"][k]
                    assert (final == current[k]["input_ids"]).all()
                    assert infos["final_info"]["score"][k] == info["score"]
                    current[k], _ = env.reset()
        over = terminated | truncated
    assert episodes > 10


def test_a_sync_vector_of_single_environments_is_the_same() -> None:
    venv = make(autoreset_mode="NextStep")
    sync = gym.make_vec(
        "TextRLHF-v0", num_envs=ROWS, vectorization_mode="sync", max_completion_tokens=BUDGET
    )
    ours, _ = venv.reset(seed=5)
    theirs, _ = sync.reset(seed=5)
    rng = np.random.default_rng(1)
    for _ in range(20):
        assert all((ours[name] == theirs[name]).all() for name in ours)
        actions = random_actions(rng)
        ours, rewards, terminated, *_ = venv.step(actions)
        theirs, expected, ended, *_ = sync.step(actions)
        assert np.allclose(rewards, expected, atol=1e-5)
        assert (terminated == ended).all()


@pytest.mark.parametrize("on_length", ["score", "truncate"])
def test_step_sequence_pays_what_steps_pay(on_length: str) -> None:
    whole = make(8, kl_coef=0.3, missing_eos_penalty=0.2, on_length=on_length, temperature=0.8)
    steps = make(8, kl_coef=0.3, missing_eos_penalty=0.2, on_length=on_length, temperature=0.8)
    whole.reset(seed=5)
    steps.reset(seed=5)
    rng = np.random.default_rng(0)
    actions = rng.integers(3, 29, (8, BUDGET))
    actions[0, 2] = actions[1, 5] = actions[2, 0] = EOS
    mask = np.ones((8, BUDGET), dtype=bool)
    mask[0, 3:] = mask[2, 1:] = False
    rewards, infos = whole.step_sequence(actions, mask)
    over = np.zeros(8, dtype=bool)
    for t in range(BUDGET):
        _, reward, terminated, truncated, step_infos = steps.step(actions[:, t])
        assert np.allclose(rewards[~over, t], reward[~over], atol=1e-5)
        assert np.allclose(
            infos["ref_logprobs"][~over, t], step_infos["ref_logprob"][~over], atol=1e-5
        )
        for k in ((terminated | truncated) & ~over).nonzero()[0]:
            assert infos["finish_reason"][k] == step_infos["finish_reason"][k]
            assert infos["completion"][k] == step_infos["completion"][k]
            if terminated[k]:
                assert infos["score"][k] == step_infos["score"][k]
        assert (rewards[over, t] == 0).all()
        over |= terminated | truncated
    assert over.all()
    assert (infos["terminated"] | infos["truncated"]).all()
    assert infos["truncated"].any() == (on_length == "truncate")
    assert np.isnan(infos["score"]).any() == (on_length == "truncate")


def test_step_sequence_may_stop_midway_and_stepping_goes_on() -> None:
    mixed, steps = make(), make()
    mixed.reset(seed=1)
    steps.reset(seed=1)
    rng = np.random.default_rng(0)
    actions = rng.integers(3, 29, (ROWS, BUDGET))
    mask = np.ones((ROWS, 3), dtype=bool)
    first, infos = mixed.step_sequence(actions[:, :3], mask)
    assert not infos["terminated"].any()
    for t in range(BUDGET):
        observations, reward, terminated, *_ = steps.step(actions[:, t])
        if t < 3:
            assert np.allclose(first[:, t], reward, atol=1e-5)
        else:
            ours, rewards, ended, *_ = mixed.step(actions[:, t])
            assert np.allclose(rewards, reward, atol=1e-5)
            assert (ours["input_ids"] == observations["input_ids"]).all()
    assert ended.all()
    assert terminated.all()


def test_episodes_that_end_together_are_scored_together() -> None:
    calls: list[int] = []

    def counting(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(len(prompts))
        return [0.0] * len(prompts)

    venv = make(reward=counting)
    venv.reset(seed=0)
    for t in range(BUDGET):
        venv.step(np.array([5, 5, EOS if t == 1 else 5, 5]))
    assert calls == [1, 3]


def test_groups_share_prompts_in_consecutive_rows() -> None:
    venv = make(8, group_size=4)
    _, infos = venv.reset(seed=0)
    for _ in range(3):
        prompts = infos["prompt"].reshape(2, 4)
        assert all(len(set(group)) == 1 for group in prompts)
        _, infos = venv.reset()
    with pytest.raises(UserError, match="multiple of group_size"):
        make(6, group_size=4)


def test_prompt_state_resumes_exactly() -> None:
    venv, again = make(), make()
    venv.reset(seed=0)
    state = venv.prompt_state()
    expected = [venv.reset()[1]["prompt"].tolist() for _ in range(10)]
    again.load_prompt_state(state)
    assert [again.reset()[1]["prompt"].tolist() for _ in range(10)] == expected


def test_stepping_cost_is_a_decode_step_not_a_re_encode(monkeypatch) -> None:
    venv = make(max_prompt_tokens=8)
    venv.reset(seed=0)
    widths: list[int] = []
    model = venv.reference.base_model
    forward = model.forward

    def watched(*args, **kwargs):
        widths.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", watched)
    for _ in range(BUDGET):
        venv.step(np.full(ROWS, 5))
    assert widths[0] == 2  # the prompts, once
    assert widths[1:] == [1] * (BUDGET - 1)


def test_spaces_metadata_and_rendering() -> None:
    venv = make(render_mode="ansi", autoreset_mode=AutoresetMode.DISABLED)
    observations, _ = venv.reset(seed=0, options={"prompt": ["a", "b", "c", "d"]})
    assert venv.observation_space.contains(observations)
    assert venv.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    venv.step(np.full(ROWS, 5))
    assert venv.render() == ("a|c", "b|c", "c|c", "d|c")
    assert venv.action_masks().shape == (ROWS, 29)
    venv.close()
    venv.close()


def test_misuse_is_explained() -> None:
    venv = make(autoreset_mode="Disabled")
    venv.reset(seed=0)
    ones = np.ones((ROWS, 2), dtype=bool)
    fives = np.full((ROWS, 2), 5)
    with pytest.raises(UserError, match=r"\(4, 2\).*\(4, 3\)"):
        venv.step_sequence(fives, np.ones((ROWS, 3), dtype=bool))
    with pytest.raises(UserError, match="row 0 has actions after EOS"):
        venv.step_sequence(np.array([[EOS, 5]] + [[5, 5]] * 3), ones)
    holes = ones.copy()
    holes[1, 0] = False
    with pytest.raises(UserError, match="up to its last action"):
        venv.step_sequence(fives, holes)
    with pytest.raises(UserError, match="row 0 has 7 actions but room for 6"):
        venv.step_sequence(np.full((ROWS, 7), 5), np.ones((ROWS, 7), dtype=bool))
    venv.step(np.array([EOS, 5, 5, 5]))
    with pytest.raises(UserError, match="row 0 is over"):
        venv.step(np.full(ROWS, 5))
    with pytest.raises(UserError, match="seeds"):
        venv.reset(seed=[1, 2])


def test_live_objects_are_taken_and_the_global_generator_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    venv = make(
        reference=tiny_model(), tokenizer=tiny_tokenizer(), reward=tiny_score, prompts=["a"]
    )
    venv.reset(seed=0)
    venv.step(np.full(ROWS, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.requires_grad for p in venv.reference.parameters())


def test_a_sequence_counts_its_places_from_the_beginning_of_the_episode() -> None:
    """EOS may come after four tokens: two by steps, then three more at once."""
    options = dict(num_envs=2, min_completion_tokens=4, max_completion_tokens=8)
    stepped, given = (gym.make_vec("TextRLHF-v0", **options) for _ in range(2))
    actions = np.tile(np.arange(5, 10), (2, 1))
    for venv in (stepped, given):
        venv.reset(seed=0)
        for place in range(2):
            venv.step(actions[:, place])
    single = [stepped.step(actions[:, place])[4]["ref_logprob"] for place in range(2, 5)]
    found = given.unwrapped.core.step_sequence(actions[:, 2:], np.ones((2, 3), dtype=bool))
    assert np.allclose(found.ref_logprobs, np.stack(single, axis=1), atol=1e-5)


def test_a_failure_of_the_reference_takes_the_tokens_back(monkeypatch) -> None:
    """The same call again pays what it would have paid."""
    found = []
    for fails in (False, True):
        venv = TextRLHFVectorEnv(num_envs=2, max_completion_tokens=5, autoreset_mode="Disabled")
        venv.reset(seed=0)
        actions, mask = np.full((2, 3), 5), np.ones((2, 3), dtype=bool)
        if fails:
            real = venv.core._logprobs

            def without_memory(*arguments, real=real):
                real(*arguments)
                raise MemoryError

            with monkeypatch.context() as patch:
                patch.setattr(venv.core, "_logprobs", without_memory)
                with pytest.raises(MemoryError):
                    venv.step_sequence(actions, mask)
            assert (venv.core.lengths == venv.core.prompt_lengths).all()
        found.append(venv.step_sequence(actions, mask)[0])
    assert np.array_equal(*found)

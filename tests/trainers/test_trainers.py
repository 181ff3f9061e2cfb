import itertools
import json

import pytest
import torch
from accelerate import Accelerator
from stable_baselines3.common.logger import KVWriter, Logger
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from textrl.config import DPOConfig, RewardConfig, SFTConfig
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.loop import epoch_minibatches
from textrl.losses import dpo_loss, ranking_loss
from textrl.packing import filled_batches, like_lengths
from textrl.rewards import RewardModel
from textrl.trainers import DPOTrainer, RewardTrainer, SFTTrainer, reward_model_from
from textrl.trainers.dpo import label_smoothing, sequence_logprobs
from textrl.updater import Updater, warmup_cosine

TEXTS = [{"text": text} for text in ("abc", "bcdefg", "cd", "defghijk", "efg", "fg", "ghij", "ab")]
PAIRS = [
    {"prompt": "a", "chosen": "bcd", "rejected": "zzy"},
    {"prompt": "b", "chosen": "cde", "rejected": "ba"},
    {"prompt": "c", "chosen": "defgh", "rejected": "a"},
    {"prompt": "d", "chosen": "e", "rejected": "cba"},
]
RANKINGS = [
    {"prompt": "a", "completions": ["bcd", "bz", "zz"], "ranks": [0, 1, 1]},
    {"prompt": "b", "completions": ["aa", "cd"], "ranks": [1, 0]},
]


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def sft(**kwargs) -> SFTTrainer:
    settings = dict(learning_rate=1e-2, minibatch_size=4, num_epochs=4) | kwargs
    return SFTTrainer(tiny_model(), tiny_tokenizer(), TEXTS, SFTConfig(**settings), shown=False)


def classifier(checkpoint: str):
    return reward_model_from(checkpoint), tiny_tokenizer()


def test_sft_learns_and_its_loss_is_the_token_mean() -> None:
    trainer = sft(num_epochs=30)
    before = trainer.evaluate_on(TEXTS)["heldout_loss"]
    model = tiny_model()
    total = count = 0.0
    for row in TEXTS:
        ids = torch.tensor([[*tiny_tokenizer()(row["text"]).input_ids, 2]])
        log_p = model(input_ids=ids).logits[0].log_softmax(-1)
        total -= sum(log_p[t, ids[0, t + 1]].item() for t in range(ids.shape[1] - 1))
        count += ids.shape[1] - 1
    assert before == pytest.approx(total / count, abs=1e-5)
    trainer.train()
    assert trainer.evaluate_on(TEXTS)["heldout_loss"] < 0.5 * before


def test_micro_batches_never_change_the_result() -> None:
    found = []
    for tokens in (1, 16, 10_000):
        trainer = sft(micro_batch_tokens=tokens)
        trainer.train()
        found.append(weights(trainer.model))
    assert torch.allclose(found[0], found[2], atol=1e-4)
    assert torch.allclose(found[1], found[2], atol=1e-4)


class Killed(Exception):
    pass


def killed_after(trainer, updates: int) -> None:
    """Train and die after some updates, as a process that is killed."""
    original, seen = Updater.update, 0

    def update(self, *arguments):
        nonlocal seen
        if seen == updates:
            raise Killed
        seen += 1
        return original(self, *arguments)

    Updater.update = update
    try:
        with pytest.raises(Killed):
            trainer.train()
    finally:
        Updater.update = original


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(kind, checkpoint, tmp_path) -> None:
    def trainer(folder):
        shared = dict(learning_rate=1e-2, minibatch_size=2, num_epochs=3, save_every=2)
        if kind == "sft":
            args = (tiny_model(), tiny_tokenizer(), TEXTS, SFTConfig(**shared))
            return SFTTrainer(*args, output_dir=folder, shown=False)
        if kind == "dpo":
            args = (tiny_model(), tiny_tokenizer(), PAIRS, DPOConfig(**shared))
            return DPOTrainer(*args, output_dir=folder, shown=False)
        args = (*classifier(checkpoint), RANKINGS * 3, RewardConfig(**shared))
        return RewardTrainer(*args, output_dir=folder, shown=False)

    straight = trainer(tmp_path / "straight")
    straight.train()
    killed_after(trainer(tmp_path / "killed"), 5)
    assert (tmp_path / "killed" / "checkpoints" / "000000004" / "state.pt").exists()
    resumed = trainer(tmp_path / "killed")
    resumed.train(resume=True)
    assert torch.equal(weights(resumed.model), weights(straight.model))
    assert not (tmp_path / "killed" / "checkpoints").exists()


def test_outputs_are_plain_checkpoints(checkpoint: str, tmp_path) -> None:
    trainer = SFTTrainer(
        tiny_model(), tiny_tokenizer(), TEXTS, output_dir=tmp_path / "sft", shown=False
    )
    trainer.train()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    assert torch.equal(weights(loaded), weights(trainer.model))
    assert AutoTokenizer.from_pretrained(tmp_path / "sft")("ab").input_ids == [1, 3, 4]
    names = {path.name for path in (tmp_path / "sft").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "progress.csv"} <= names
    rows = (tmp_path / "sft" / "progress.json").read_text().splitlines()
    assert "sft/loss" in json.loads(rows[0])

    reward = RewardTrainer(
        *classifier(checkpoint), RANKINGS, output_dir=tmp_path / "rm", shown=False
    )
    reward.train()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    frozen = RewardModel.from_pretrained(tmp_path / "rm")
    ids = torch.tensor([[1, 3, 4, 2]])
    raw = plain(input_ids=ids).logits.item()
    config = plain.config
    assert frozen(["a"], ["b"])[0] == pytest.approx(
        (raw - config.score_mean) / config.score_std, abs=1e-4
    )


def test_reward_scores_are_normalised_on_the_given_texts(checkpoint: str) -> None:
    texts = ["abc", "bcd", "zzz", "q", "mnop"]
    trainer = RewardTrainer(*classifier(checkpoint), RANKINGS, normalize_on=texts, shown=False)
    trainer.train()
    scores = torch.tensor(trainer.reward_model()([""] * 5, texts))
    assert scores.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert scores.std(unbiased=False).item() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("loss_type", ["ranking", "plackett_luce"])
def test_reward_model_learns_rankings_and_pairs(checkpoint: str, loss_type) -> None:
    for data in (RANKINGS, PAIRS, [row | {"margin": 0.5} for row in PAIRS]):
        config = RewardConfig(
            learning_rate=1e-2, num_epochs=20, minibatch_size=2, loss_type=loss_type
        )
        trainer = RewardTrainer(*classifier(checkpoint), data, config, shown=False)
        trainer.train()
        score = trainer.reward_model()
        if data is RANKINGS:
            best, tied, worst = score(["a"] * 3, ["bcd", "bz", "zz"])
            assert best > max(tied, worst)
        else:
            for row in data:
                chosen, rejected = score([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
                assert chosen > rejected


def test_a_ranking_is_one_element_and_its_loss_is_ours(checkpoint: str) -> None:
    config = RewardConfig(center_coef=0.0)
    trainer = RewardTrainer(*classifier(checkpoint), RANKINGS, config, shown=False)
    trainer.model.eval()
    assert len(trainer.train_rankings) == 2
    together = trainer._loss(trainer.train_rankings).loss
    scores = trainer._score_rankings(trainer.train_rankings)
    assert together.item() == pytest.approx(ranking_loss(*scores).sum().item())
    alone = sum(trainer._loss([ranking]).loss.item() for ranking in trainer.train_rankings)
    assert together.item() == pytest.approx(alone, abs=1e-5)


def test_reward_margins_need_pairs(checkpoint: str) -> None:
    mixed = [PAIRS[0] | {"margin": 1.0}, RANKINGS[0]]
    with pytest.raises(UserError, match="margin"):
        RewardTrainer(*classifier(checkpoint), mixed, shown=False)


def test_dpo_starts_at_log_2_and_learns() -> None:
    config = DPOConfig(learning_rate=1e-2, num_epochs=10, minibatch_size=2)
    trainer = DPOTrainer(tiny_model(), tiny_tokenizer(), PAIRS, config, shown=False)
    zeros = torch.zeros(4)
    reference = trainer._reference
    assert torch.allclose(
        dpo_loss(reference[0], reference[1], reference[0], reference[1]), zeros + 0.693147
    )
    trainer.train()
    trainer.heldout_pairs, trainer._heldout_reference = trainer.train_pairs, reference
    assert trainer.evaluate()["heldout_accuracy"] == 1.0


def test_dpo_reference_logprobs_are_those_of_the_completion() -> None:
    trainer = DPOTrainer(tiny_model(), tiny_tokenizer(), PAIRS, shown=False)
    ids = torch.tensor([[1, 3, 4, 5, 6, 2]])  # <bos> a | b c d <eos>
    log_p = tiny_model()(input_ids=ids).logits[0].log_softmax(-1)
    expected = sum(log_p[t, ids[0, t + 1]].item() for t in range(1, 5))
    assert trainer._reference[0, 0].item() == pytest.approx(expected, abs=1e-4)


def test_kto_takes_its_baseline_from_mismatched_texts_of_the_minibatch() -> None:
    found = []
    for tokens in (1, 10_000):
        config = DPOConfig(
            loss_type="kto", micro_batch_tokens=tokens, minibatch_size=2, learning_rate=1e-2
        )
        model = tiny_model()
        trainer = DPOTrainer(model, tiny_tokenizer(), PAIRS, config, shown=False)
        strangers = [trainer.tokenizer.decode(s.ids) for s in trainer._strangers]
        assert strangers == ["<bos>acde<eos>", "<bos>bdefgh<eos>", "<bos>ce<eos>", "<bos>dbcd<eos>"]
        trainer._estimate_kl([0, 2])
        assert trainer._kl.item() == pytest.approx(0.0, abs=1e-5)  # still the reference
        trainer.train()
        with torch.no_grad():
            now = sequence_logprobs(trainer._policy, [trainer._strangers[i] for i in (0, 2)])
        trainer._estimate_kl([0, 2])
        expected = (now - trainer._reference_of_strangers[[0, 2]]).mean()
        assert abs(expected) > 1e-3
        assert trainer._kl.item() == pytest.approx(expected.item(), abs=1e-5)
        found.append(weights(model))
    assert torch.allclose(found[0], found[1], atol=2e-5)


def test_a_mix_of_losses_trains_and_encoded_pairs_are_taken_as_they_are() -> None:
    config = DPOConfig(loss_type={"sigmoid": 1.0, "sft": 0.2}, learning_rate=1e-2)
    first, second = tiny_model(), tiny_model()
    trainer = DPOTrainer(first, tiny_tokenizer(), PAIRS, config, shown=False)
    trainer.train()
    DPOTrainer(second, tiny_tokenizer(), trainer.train_pairs, config, shown=False).train()
    assert torch.equal(weights(first), weights(second))
    with pytest.raises(UserError, match="did you mean 'sigmoid'"):
        DPOConfig(loss_type={"sigmoyd": 1.0})
    with pytest.raises(UserError, match="label_smoothing"):
        DPOConfig(loss_type="simpo", label_smoothing=0.1)
    for bad in ({"sigmoid": float("nan")}, {"sigmoid": -1.0}, {"sigmoid": "x"}, ["sigmoid"], {}):
        with pytest.raises(UserError, match="loss_type"):
            DPOConfig(loss_type=bad)


@pytest.mark.parametrize("loss_type", ["simpo", "orpo", {"simpo": 1.0, "sft": 0.5}])
def test_a_loss_without_a_reference_reads_none_and_logs_nothing_about_it(
    loss_type, monkeypatch, tmp_path
) -> None:
    def passes(*arguments: object) -> torch.Tensor:
        raise AssertionError("the reference was read")

    monkeypatch.setattr("textrl.trainers.dpo.reference_logprobs", passes)
    config = DPOConfig(loss_type=loss_type, heldout_share=0.5, num_epochs=20, learning_rate=1e-2)
    trainer = DPOTrainer(
        tiny_model(), tiny_tokenizer(), PAIRS, config, output_dir=tmp_path, shown=False
    )
    metrics = trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    found = {name for row in rows for name in row if name.startswith("dpo/")}
    assert {"dpo/loss", "dpo/accuracy"} <= found
    assert not found & {"dpo/margin", "dpo/chosen_reward", "dpo/rejected_reward"}
    right = 0
    for pair in trainer.heldout_pairs:
        means = [
            float(sequence_logprobs(trainer._policy, [side]).detach()) / side.num_counted
            for side in (pair.chosen, pair.rejected)
        ]
        right += means[0] > means[1]
    assert metrics["heldout_accuracy"] == right / len(trainer.heldout_pairs)
    mix = DPOConfig(loss_type={"sigmoid": 1.0, "sft": 0.2})
    with pytest.raises(AssertionError, match="was read"):
        DPOTrainer(tiny_model(), tiny_tokenizer(), PAIRS, mix, shown=False)


def test_labels_are_as_soft_as_the_raters() -> None:
    rows = [PAIRS[0] | {"certainty": 0.75}, PAIRS[1]]
    trainer = DPOTrainer(tiny_model(), tiny_tokenizer(), rows, DPOConfig(), shown=False)
    assert [p.certainty for p in trainer.train_pairs] == [0.75, 1.0]
    smoothing = label_smoothing(trainer.train_pairs, DPOConfig(), torch.device("cpu"))
    assert smoothing.tolist() == [0.25, 0.0]
    both = label_smoothing(trainer.train_pairs, DPOConfig(label_smoothing=0.1), torch.device("cpu"))
    assert both.tolist() == pytest.approx([0.75 * 0.1 + 0.25 * 0.9, 0.1])
    with pytest.raises(UserError, match="drop the column certainty"):
        DPOTrainer(
            tiny_model(), tiny_tokenizer(), rows, DPOConfig(loss_type="robust"), shown=False
        ).train()
    with pytest.raises(UserError, match="certainty is 2; expected a share"):
        DPOTrainer(tiny_model(), tiny_tokenizer(), [PAIRS[0] | {"certainty": 2}], shown=False)
    with pytest.raises(UserError, match="several prompts"):
        DPOTrainer(
            tiny_model(), tiny_tokenizer(), PAIRS[:1], DPOConfig(loss_type="kto"), shown=False
        )


def test_dpo_bad_data_names_the_place(tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b"}\n'
    )
    with pytest.raises(UserError, match=r"pairs\.jsonl:2: column 'rejected' is missing"):
        DPOTrainer(tiny_model(), tiny_tokenizer(), path, shown=False)


def test_whole_chats_are_read_as_their_shared_prompt_and_replies(checkpoint: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    ask, good, bad = (
        {"role": role, "content": text}
        for role, text in (("user", "ab"), ("assistant", "cde"), ("assistant", "zz"))
    )
    split = {"prompt": [ask], "chosen": [good], "rejected": [bad]}
    whole = {"chosen": [ask, good], "rejected": [ask, bad]}
    one, other, third = (
        DPOTrainer(tiny_model(), tokenizer, [row], shown=False).train_pairs
        for row in (split, whole, whole | {"prompt": "ab"})
    )
    assert one == other == third
    scored = [
        RewardTrainer(reward_model_from(checkpoint), tokenizer, [row], shown=False).train_rankings
        for row in (split, whole, whole | {"prompt": "ab"})
    ]
    assert scored[0] == scored[1] == scored[2]


def test_pairs_that_are_the_same_tokens_are_refused_with_their_place(checkpoint, tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in (PAIRS[0], PAIRS[1] | {"rejected": "cde"})))
    with pytest.raises(UserError, match=r"pairs.jsonl:2: .*ranks are the same 6 tokens"):
        RewardTrainer(*classifier(checkpoint), path, shown=False)
    tied = {"prompt": "a", "completions": ["b", "b", "c"], "ranks": [0, 0, 1]}
    RewardTrainer(*classifier(checkpoint), [tied], shown=False)  # equal ranks say the same
    with pytest.raises(UserError, match=r"pairs.jsonl:2: chosen and rejected are the same 6 tok"):
        DPOTrainer(tiny_model(), tiny_tokenizer(), path, shown=False)
    alike = [PAIRS[0], {"prompt": "b", "chosen": "cdefg", "rejected": "cdexyz"}]
    with pytest.raises(UserError, match=r"record 1: .* same 4 tokens within max_length 4"):
        DPOTrainer(tiny_model(), tiny_tokenizer(), alike, DPOConfig(max_length=4), shown=False)
    config = RewardConfig(max_length=6)
    with pytest.raises(UserError, match=r"record 1: the text has \d+ tokens and the limit is 6"):
        RewardTrainer(*classifier(checkpoint), alike, config, shown=False)


def test_heldout_share_evaluates_unseen_prompts() -> None:
    rows = [{"prompt": f"{a}{b}", "completion": "cd"} for a in "abcdef" for b in "abcdef"]
    config = SFTConfig(heldout_share=0.3, minibatch_size=8)
    trainer = SFTTrainer(tiny_model(), tiny_tokenizer(), rows, config, shown=False)
    assert len(trainer.train_sequences) + len(trainer.heldout_sequences) == 36
    assert trainer.train()["heldout_loss"] > 0


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_bfloat16_keeps_the_losses_within_a_percent(stage: str, checkpoint: str) -> None:
    pairs = [{"prompt": "a", "chosen": "b" * n, "rejected": "c" * (9 - n)} for n in range(1, 9)]
    texts = TEXTS if stage == "sft" else pairs
    configs = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig}
    losses: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for precision, found in losses.items():

        class Losses(KVWriter):
            def write(self, key_values, *_, found=found) -> None:
                found.append(key_values[f"{stage}/loss"])

        config = configs[stage](
            minibatch_size=4, num_epochs=8, learning_rate=1e-3, precision=precision
        )
        trainers = {"sft": SFTTrainer, "reward": RewardTrainer, "dpo": DPOTrainer}
        model = reward_model_from(checkpoint) if stage == "reward" else tiny_model()
        logger = Logger(folder=None, output_formats=[Losses()])
        trainer = trainers[stage](
            model, tiny_tokenizer(), texts, config, logger=logger, shown=False
        )
        trainer.train()
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)


def test_filled_batches_and_schedule() -> None:
    lengths = [9, 1, 5, 5, 2]
    filled = filled_batches(lengths, 10)
    assert sorted(i for batch in filled for i in batch) == list(range(5))
    assert all(sum(lengths[i] for i in b) <= 10 for b in filled)
    assert filled_batches([], 10) == []
    assert filled_batches([6, 6], 10) == [[0], [1]]
    assert filled_batches([3] * 4, 10) == [[0, 1], [2, 3]]  # not three and a rest
    factor = warmup_cosine(100, 0.1)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(10) == 1.0
    assert factor(99) < 0.001


def test_like_lengths_are_the_cheapest_split() -> None:
    def cost(batches: list[list[int]], lengths: list[int]) -> int:
        return sum(64 + len(b) * max(lengths[i] for i in b) for b in batches)

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        lengths = torch.randint(1, 200, (7,), generator=generator).tolist()
        order = sorted(range(7), key=lambda i: lengths[i])
        splits = []
        for bits in range(2**6):  # every way to cut the sorted row
            cuts = [0, *(i + 1 for i in range(6) if bits >> i & 1), 7]
            split = [order[a:b] for a, b in itertools.pairwise(cuts)]
            splits.append(cost(split, lengths))
        assert cost(like_lengths(lengths, 64), lengths) == min(splits)


def test_minibatches_are_a_shuffled_partition_of_like_lengths() -> None:
    lengths = torch.randint(5, 80, (1000,), generator=torch.Generator().manual_seed(0)).tolist()

    def drawn(seed: int) -> list[list[int]]:
        return epoch_minibatches(lengths, 32, torch.Generator().manual_seed(seed))

    first = drawn(0)
    assert sorted(i for batch in first for i in batch) == list(range(1000))
    assert len(first) == 32
    assert first == drawn(0) != drawn(1)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in first)
    assert padded < 1.3 * sum(lengths)
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in first]
    assert means != sorted(means)  # neither short nor long texts come first
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in drawn(1)}


def test_matrices_alone_decay() -> None:
    layer = nn.Linear(3, 3)
    updater = Updater(
        [(layer, 0.1)],
        accelerator=Accelerator(cpu=True),
        betas=(0.8, 0.95),
        max_grad_norm=1.0,
        weight_decay=0.5,
    )
    assert {group["betas"] for group in updater.optimizer.param_groups} == {(0.8, 0.95)}
    decays = {
        group["weight_decay"]: len(group["params"]) for group in updater.optimizer.param_groups
    }
    assert decays == {0.5: 1, 0.0: 1}
    with pytest.raises(UserError, match="no parameter"):
        Updater(
            [(layer.requires_grad_(False), 0.1)],
            accelerator=Accelerator(cpu=True),
            betas=(0.9, 0.99),
            max_grad_norm=1.0,
        )


def test_a_trainers_optimiser_has_the_betas_of_its_configuration() -> None:
    def weights(**options: float) -> torch.Tensor:
        model = tiny_model()
        SFTTrainer(
            model, tiny_tokenizer(), TEXTS, SFTConfig(minibatch_size=4, **options), shown=False
        ).train()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    given = weights()
    assert torch.equal(given, weights(adam_beta1=0.9, adam_beta2=0.99))
    assert not torch.equal(given, weights(adam_beta1=0.8))
    assert not torch.equal(given, weights(adam_beta2=0.9))


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_auto_trains_in_the_precision_that_it_picks(stage: str, monkeypatch) -> None:
    """The losses are those of the precision by name, to the last bit."""
    monkeypatch.setattr("textrl.precision.LEAST_PARAMETERS", 1)
    pairs = [{"prompt": "a", "chosen": "b" * n, "rejected": "c" * (9 - n)} for n in range(1, 9)]
    trainer, config = {"sft": (SFTTrainer, SFTConfig), "dpo": (DPOTrainer, DPOConfig)}[stage]
    rows = TEXTS if stage == "sft" else pairs

    def weights(asked: str) -> torch.Tensor:
        model = tiny_model()
        settings = config(minibatch_size=4, learning_rate=1e-3, precision=asked)
        trainer(model, tiny_tokenizer(), rows, settings, shown=False).train()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    for units, same in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(
            "textrl.precision.has_bfloat16_units", lambda device, units=units: units
        )
        assert torch.equal(weights("auto"), weights(same))
    assert not torch.equal(weights("bfloat16"), weights("float32"))

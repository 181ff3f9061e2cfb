"""A run goes on when asked to, as the run that it was; a stop leaves a save to go on from."""

import json
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from textrl import cli
from textrl.checkpoint import Checkpoints, DamagedSave, load_state, save_state
from textrl.config import DPOConfig, SFTConfig
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.stopping import Terminated, terminable, uninterrupted
from textrl.trainers import DPOTrainer, SFTTrainer
from textrl.updater import LossSum, OutOfMemory, Updater

TEXTS = [{"text": "abcdefghij"[: 2 + i % 8]} for i in range(16)]


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """A process started in the background may have been told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def sft(folder, texts=TEXTS, model=None, **settings) -> SFTTrainer:
    config = SFTConfig(**{"minibatch_size": 2, "learning_rate": 1e-2} | settings)  # 8 updates
    return SFTTrainer(
        model or tiny_model(), tiny_tokenizer(), texts, config, output_dir=folder, shown=False
    )


def newest(run: Path) -> Path:
    save = Checkpoints(run).newest()
    assert save is not None
    return save / "state.pt"


def interrupted(trainer: SFTTrainer, update: int, monkeypatch, *, when: str = "loss") -> None:
    """Train, and press Ctrl+C in the loss of an update, or while its step is taken."""
    loss, calls = trainer._loss, iter(range(1000))
    step, steps = Updater.update, iter(range(1000))

    def pressed_in_loss(sequences) -> LossSum:
        if next(calls) == update and when == "loss":
            raise KeyboardInterrupt
        return loss(sequences)

    def pressed_in_step(self: Updater, *arguments) -> float:
        if next(steps) == update and when == "step":
            signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "update", pressed_in_step)
        patch.setattr(trainer, "_loss", pressed_in_loss)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()


@pytest.mark.parametrize(("when", "done"), [("loss", 5), ("step", 6)])
def test_ctrl_c_in_the_first_epoch_loses_no_update(when, done, tmp_path, monkeypatch) -> None:
    straight = sft(tmp_path / "straight")
    straight.train()
    interrupted(sft(tmp_path / "run"), 5, monkeypatch, when=when)
    assert load_state(newest(tmp_path / "run"))["counts"] == [done, 0, 0]
    resumed = sft(tmp_path / "run")
    resumed.train(resume=True)
    assert torch.equal(weights(resumed.model), weights(straight.model))
    for name in ("progress.json", "progress.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_memory_that_ends_a_run_loses_no_update(tmp_path, monkeypatch) -> None:
    straight = sft(tmp_path / "straight")
    straight.train()
    real, calls = Updater._add_gradients, iter(range(1000))

    def without_room(self, losses) -> None:
        if next(calls) >= 5:
            raise MemoryError
        real(self, losses)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "_add_gradients", without_room)
        with pytest.raises(OutOfMemory, match="one text of") as caught:
            sft(tmp_path / "run").train()
    assert caught.value.__notes__ == ["the run is saved after update 5 of 8"]
    resumed = sft(tmp_path / "run")
    resumed.train(resume=True)
    assert torch.equal(weights(resumed.model), weights(straight.model))


@pytest.mark.parametrize("damage", [b"", b"\xf2{", b'{"sft/loss": 1}\n', None])
def test_the_metrics_of_a_stopped_run_come_from_its_save(damage, tmp_path, monkeypatch) -> None:
    sft(tmp_path / "straight").train()
    interrupted(sft(tmp_path / "run"), 5, monkeypatch)
    file = tmp_path / "run" / "progress.json"
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    sft(tmp_path / "run").train(resume=True)
    for name in ("progress.json", "progress.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_nothing_goes_on_unasked_nor_where_there_is_nothing(tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match="holds no save to resume"):
        sft(tmp_path / "run").train(resume=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="needs output_dir"):
        sft(None).train(resume=True)
    interrupted(sft(tmp_path / "run"), 5, monkeypatch)
    rows = (tmp_path / "run" / "progress.json").read_text()
    with pytest.raises(UserError, match=r"not finished; continue it with train\(resume=True\)"):
        sft(tmp_path / "run").train()
    assert (tmp_path / "run" / "progress.json").read_text() == rows
    sft(tmp_path / "run").train(resume=True)
    with pytest.raises(UserError, match="is complete; nothing to resume"):
        sft(tmp_path / "run").train(resume=True)


def test_a_run_goes_on_with_its_own_settings_data_and_model(tmp_path, monkeypatch) -> None:
    interrupted(sft(tmp_path), 5, monkeypatch)
    other = [{"text": "zyx"}] + TEXTS[1:]
    small = tiny_model()
    small.model.layers = small.model.layers[:1]
    for trainer, message in (
        (sft(tmp_path, learning_rate=1e-5), r"another learning_rate: .* has 0\.01, not 1e-05"),
        (sft(tmp_path, num_epochs=2), "another num_epochs"),
        (sft(tmp_path, other), "resume with another data"),
        (sft(tmp_path, TEXTS[::-1]), "resume with another data"),
        (sft(tmp_path, model=small), "resume with another model"),
    ):
        with pytest.raises(UserError, match=message):
            trainer.train(resume=True)
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 16
    dpo = DPOTrainer(
        tiny_model(), tiny_tokenizer(), pairs, DPOConfig(), output_dir=tmp_path, shown=False
    )
    with pytest.raises(UserError, match="another stage"):
        dpo.train(resume=True)
    sft(tmp_path, save_every=3).train(resume=True)  # this may change


@pytest.mark.parametrize("damage", ["cut", "empty", "altered", "text"])
def test_a_damaged_state_is_refused_by_name(damage, tmp_path) -> None:
    file = tmp_path / "state.pt"
    save_state(file, {"model": torch.arange(1000.0)})
    content = file.read_bytes()
    middle = content.index(torch.arange(500.0, 510.0).numpy().tobytes())
    file.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "altered": content[:middle] + b"\x01" + content[middle + 1 :],
            "text": b"not a state",
        }[damage]
    )
    with pytest.raises(UserError, match=r"state\.pt is damaged") as caught:
        load_state(file)
    assert "\n" not in str(caught.value)


def test_a_state_of_something_else_is_refused(tmp_path) -> None:
    def write(folder: Path) -> None:
        save_state(folder / "state.pt", {"counters": [1, 2]})  # as an agent's

    Checkpoints(tmp_path).save(1, write)
    with pytest.raises(UserError, match="holds no state of a trainer"):
        sft(tmp_path).train(resume=True)


def test_ctrl_c_waits_for_the_end_of_a_block() -> None:
    reached = []

    def block() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_command_line_resumes_what_ctrl_c_stopped(
    checkpoint: str, tmp_path, capsys, monkeypatch
) -> None:
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, TEXTS)))
    command = ["sft", f"--model={checkpoint}", f"--data={tmp_path / 'texts.jsonl'}"]
    command += ["--minibatch_size=2", f"--output_dir={tmp_path / 'run'}"]

    def fails(*more: str) -> str:
        with pytest.raises(SystemExit):
            cli.main([*command, *more])
        return capsys.readouterr().err.splitlines()[-1]

    assert "holds no save to resume" in fails("--resume")
    assert not (tmp_path / "run").exists()
    step, steps = Updater.update, iter(range(1000))

    def pressed(self: Updater, *arguments) -> float:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "update", pressed)
        assert fails() == f"textrl: continue with: textrl {shlex.join(command)} --resume"
    state = newest(tmp_path / "run").read_bytes()
    newest(tmp_path / "run").write_bytes(state[:-100])
    assert "state.pt is damaged" in fails("--resume")
    file = tmp_path / "run/checkpoints/000000003/state.pt"
    file.write_bytes(state)
    cli.main([*command, "--resume"])
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert not Checkpoints(tmp_path / "run").exist()


def test_sigterm_is_heard_between_updates_and_ends_with_143(tmp_path, monkeypatch) -> None:
    straight = sft(tmp_path / "straight")
    straight.train()
    step, steps = Updater.update, iter(range(1000))

    def terminated(self: Updater, *arguments) -> float:
        if next(steps) == 4:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "update", terminated)
        with pytest.raises(SystemExit) as caught:
            sft(tmp_path / "run").train()
    assert caught.value.code == 143
    assert caught.value.__notes__ == ["the run is saved after update 5 of 8"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    resumed = sft(tmp_path / "run")
    resumed.train(resume=True)
    assert torch.equal(weights(resumed.model), weights(straight.model))


def test_somebody_elses_handler_of_sigterm_stays() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *arguments: heard.append(True))
    try:
        with terminable():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [True]
    assert issubclass(Terminated, SystemExit)


def test_the_save_before_a_damaged_one_is_used(tmp_path) -> None:
    straight = sft(tmp_path / "straight")
    straight.train()
    run = tmp_path / "run"
    stopped = sft(run, save_every=2)
    loss, calls = stopped._loss, iter(range(1000))

    def killed(sequences) -> LossSum:
        if next(calls) == 5:
            raise RuntimeError("killed")
        return loss(sequences)

    stopped._loss = killed
    with pytest.raises(RuntimeError, match="killed"):
        stopped.train()
    assert newest(run).parent.name == "000000004"
    content = newest(run).read_bytes()
    newest(run).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    resumed = sft(run)
    with pytest.warns(DamagedSave, match=r"000000004/state\.pt is damaged.* from step 2"):
        resumed.train(resume=True)
    assert torch.equal(weights(resumed.model), weights(straight.model))
    for name in ("progress.json", "progress.csv"):
        assert (run / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()

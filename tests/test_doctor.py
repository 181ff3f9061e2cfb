"""`textrl doctor`: what it finds in hand-written numbers, in sick runs and in healthy ones."""

import json
import math
from pathlib import Path
from typing import Any

import doctor_runs
import numpy as np
import pytest

from textrl.cli import main
from textrl.cli.report_options import DoctorConfig, ReportConfig
from textrl.doctor.diagnose import AGENT_RULES, diagnose, in_words
from textrl.doctor.machine import _warnings
from textrl.doctor.records import Record, Series, read_records
from textrl.doctor.trainer_rules import ANY_RULES, TRAINER_RULES
from textrl.errors import UserError


def series(*values: float) -> Series:
    return Series(unit="update", places=np.arange(1, len(values) + 1), values=np.array(values))


def test_a_series_is_compared_by_fifths_and_its_own_noise() -> None:
    rising = series(*range(10))
    assert (rising.first, rising.last, rising.size) == (0.5, 8.5, 2)
    assert rising.trend == pytest.approx(45 / 125**0.5)  # 45 pairs; 10 * 9 * 25 / 18
    assert rising.error == pytest.approx((1 / 2) ** 0.5 * (2 / 2) ** 0.5)
    assert rising.rises
    assert not rising.falls
    assert series(*range(10, 0, -1)).falls
    noisy = series(*[0.0, 1.0] * 10)
    assert not noisy.rises
    assert not noisy.falls
    assert not series(*[0.0, 1.0] * 9, 0.1, 1.1).rises  # a gain within the noise
    slow = series(*(0.06 * n + n % 2 for n in range(20)))  # a gain of 2 errors, and a clear trend
    assert slow.last - slow.first < 2 * slow.error
    assert slow.rises
    early = series(0.0, 0.5, 0.8, *[0.8, 0.79] * 9)  # what rises at once and then stays has risen
    assert early.rises


HEALTHY: dict[str, list[float]] = {
    "rollout/score": [0.15 * n for n in range(10)],
    "rollout/score_std": [1.0] * 10,
    "rollout/objective": [0.14 * n for n in range(10)],
    "rollout/kl": [0.5 * n for n in range(10)],
    "rollout/kl_error": [0.1] * 10,
    "rollout/kl_coef": [0.02] * 10,
    "rollout/length": [20.0] * 10,
    "rollout/entropy": [2.0 - 0.05 * n for n in range(10)],
    "rollout/eos_share": [0.8] * 10,
    "rollout/masked": [0.0] * 10,
    "train/explained_variance": [0.05 * n for n in range(10)],
    "train/clip_fraction": [0.1] * 10,
    "train/approx_kl": [0.01] * 10,
    "train/updates": [8.0] * 10,
    "train/first_ratio_error": [1e-6] * 10,
    "train/skipped_updates": [0.0] * 10,
    "time/collect_seconds": [3.0] * 10,
    "time/update_seconds": [3.0] * 10,
    "time/reward_seconds": [0.5] * 10,
}
"""A healthy run of an agent."""


def found(numbers: dict[str, list[float]], **other: Any) -> list[str]:
    """Return the names of the findings about a run with these columns."""
    count = max(len(column) for column in numbers.values())
    rows = [
        {"time/step": n + 1, "time/iteration": n + 1}
        | {name: column[n] for name, column in numbers.items() if n < len(column)}
        for n in range(count)
    ]
    known = {"folder": Path("run"), "settings": {}, "machine": {}} | other
    record = Record(rows=rows, **known)
    return [finding.name for finding in diagnose(record)]


def changed(**columns: list[float]) -> dict[str, list[float]]:
    """Return the healthy run with other columns; `__` stands for `/`."""
    return HEALTHY | {name.replace("__", "/"): column for name, column in columns.items()}


def line(start: float, end: float, count: int = 10) -> list[float]:
    return np.linspace(start, end, count).tolist()


def both(score: list[float], **columns: list[float]) -> dict[str, list[float]]:
    """Return the healthy run, as long as this score, which is its objective too."""
    count = len(score)
    longer = {name: (column * count)[:count] for name, column in HEALTHY.items()}
    longer |= {"rollout/kl": [0.5] * count, "rollout/kl_coef": [0.0] * count}
    longer |= {"rollout/score": score, "rollout/objective": score}
    longer["train/explained_variance"] = [0.2] * count
    longer["rollout/entropy"] = [2.0] * count
    return longer | {name.replace("__", "/"): column for name, column in columns.items()}


FLAT = [0.1, 0.2] * 5
ROSE = line(0.1, 0.98)
SICK: dict[str, list[dict[str, list[float]]]] = {
    "sampling_disagrees": [changed(train__first_ratio_error=[1e-6] * 9 + [0.03])],
    "kl_negative": [
        changed(rollout__kl=[-0.5] * 10),
        both(line(0, 2, 40), rollout__kl=[3.0] * 20 + [-2.0] * 20),  # in the second half
    ],
    "constant_reward": [
        both([2.0] * 10, rollout__score_std=[0.0] * 10),
        both([1.0] * 10, rollout__score_std=[0.0] * 10),
    ],
    "flat_groups": [
        changed(rollout__flat_groups=[0.6] * 10),
        both(line(0.2, 0.3, 40), rollout__flat_groups=[0.1] * 22 + [1.0] * 18),
    ],
    "gibberish": [
        changed(**{"rollout/scores/judge": line(1, 0)}),
        both(ROSE, **{"heldout/scores/human": line(0.8, 0.1)}),  # a reward from 0 to 1 too
        both(line(0, 2), rollout__entropy=line(2, 6), rollout__kl=line(0, 8)),
    ],
    "heldout_falls": [both(line(0, 1.5), heldout__score=line(1, -1))],
    "kl_explodes": [
        changed(rollout__kl=[3.0 * n for n in range(10)]),
        both(ROSE, rollout__kl=line(0, 160)),  # of a solved task, 8 nats a token
        both(line(0, 2), rollout__kl=line(0, 380), rollout__length=[400.0] * 10),
        both(
            line(0, 2),
            rollout__kl=[0.0, 9.0, 8.0, *[1.0] * 7],
            rollout__objective=[0, -6, -6, *[1] * 7],
        ),
    ],
    "entropy_gone": [
        changed(rollout__entropy=[2.0, 1.5, 1.0, 0.5, *[0.1] * 6]),
        both(line(0, 2, 300), rollout__entropy=[2.0, 0.5, *[0.004] * 298]),
    ],
    "reward_flat": [
        both(FLAT),
        # the objective rises with its kl_coef alone
        both(
            [0.3, 0.32] * 5,
            rollout__kl=[5.0] * 10,
            rollout__kl_coef=line(0.2, 0.02),
            rollout__objective=line(-0.7, 0.2),
        ),
    ],
    "reward_falls": [
        both(line(0, -0.9)),
        both([*line(0, 2, 20), *line(2, 0.5, 20)]),  # up and down again
    ],
    "reward_out_of_range": [changed(rollout__score_std=[0.1] * 10)],
    "length_to_budget": [
        changed(rollout__eos_share=[0.8, 0.5, 0.3, *[0.02] * 7]),
        changed(rollout__eos_share=line(0.95, 0.08), rollout__length=line(20, 63)),
    ],
    "eos_never": [changed(rollout__eos_share=[0.0] * 10)],
    "clip_fraction_high": [changed(train__clip_fraction=[0.6] * 10)],
    "clip_fraction_zero": [changed(train__clip_fraction=[0.0] * 10, train__approx_kl=[5e-6] * 10)],
    "explained_variance_negative": [
        changed(train__explained_variance=[-0.5] * 10),
        both(line(0, 2, 100), train__explained_variance=[-0.17, -0.23] * 50),
    ],
    "episodes_masked": [changed(rollout__masked=[20.0] * 10, rollout__episodes=[236.0] * 10)],
    "starved": [changed(time__reward_seconds=[4.0] * 10)],
    "gradients_not_finite": [changed(train__skipped_updates=[0.0] * 9 + [1.0])],
    "not_finite": [changed(rollout__kl=[math.nan] * 10)],
}
NEARLY: dict[str, dict[str, list[float]]] = {
    "solved, flat": both([0.95, 0.96] * 5),
    "a warm start": both([0.86, 0.87] * 5),
    "solved, no entropy": both(
        [0.1, 0.3, 0.6, *[1.0] * 7], rollout__entropy=[2.0, 1.0, 0.5, *[0.01] * 7]
    ),
    "solved, groups alike": both(
        [0.1, 0.3, 0.6, *[1.0] * 7], rollout__flat_groups=[0.1, 0.3, *[0.9] * 8]
    ),
    "solved, from -1 to 1": both(
        [-0.1, 0.3, 0.8, *[1.0] * 7],
        rollout__score_std=[1.0, 0.9, 0.6, *[0.01] * 7],
        rollout__entropy=[2.0, 1.0, 0.5, *[0.01] * 7],
        rollout__kl=line(0, 22),
        rollout__flat_groups=[0.1, 0.3, *[0.9] * 8],
    ),
    "one of eight letters, each for certain": both(
        line(1.6, 7.0), rollout__length=[8.0] * 10, rollout__kl=line(0, 20)
    ),
    "KL negative at first": both(line(0, 2), rollout__kl=[-0.03] + [0.5 * n for n in range(9)]),
    "KL negative by chance": both(line(0, 2), rollout__kl=[-0.05] * 10),  # an error of 0.03
    "one jump that is over": both(
        line(0, 2), rollout__kl=[0.0, 6.0, *[1.0] * 8], rollout__objective=[0, -6, *line(0, 1, 8)]
    ),
    "no lengths": {k: v for k, v in both(line(0, 2)).items() if k != "rollout/length"}
    | {"rollout/kl": [3.0] * 10},
    "the objective rises, the score does not": both(
        FLAT,
        rollout__kl=line(9, 1),
        rollout__kl_coef=[0.1] * 10,
        rollout__objective=line(-0.8, 0.1),
    ),
    "rises at once and stays": both([0.1, 0.5, 0.75, *line(0.82, 0.8, 17)]),
    "a verifiable reward that breaks through": both(
        [*[0.01] * 12, *line(0.05, 0.7, 12)],
        rollout__score_std=[0.1] * 12 + [(p * (1 - p)) ** 0.5 for p in line(0.05, 0.7, 12)],
    ),
    "noise of the episodes": both(
        line(0.5, 0.44, 9),
        rollout__score_std=[0.17] * 9,
        rollout__episodes=[64.0] * 9,
        rollout__objective=line(0, 1, 9),
        rollout__kl=line(9, 1, 9),
        rollout__kl_coef=[0.1] * 9,
    ),
    "a little is lost again": both([*line(0, 3, 20), *line(3, 2.2, 10)]),
    "a metric that rises": both(line(0, 2), **{"rollout/scores/judge": line(0, 1)}),
    "shorter texts": both(line(0, 2), **{"rollout/scores/length": line(200, 100)}),
    "few groups alike": both(line(0, 2), rollout__flat_groups=[0.4] * 10),
    "always at the budget as at first": both(line(0, 2), rollout__eos_share=[0.06] * 10),
    "a critic that begins": both(line(0, 2), train__explained_variance=[-0.2, -0.1] * 5),
    "rare failures": both(line(0, 2), rollout__masked=[1.0] * 10, rollout__episodes=[255.0] * 10),
    "a fast reward": both(
        line(0, 2),
        time__reward_seconds=[0.2] * 10,
        time__collect_seconds=[0.2] * 10,
        time__update_seconds=[0.1] * 10,
    ),
    "one update an iteration": both(
        line(0, 2),
        train__clip_fraction=[0.0] * 10,
        train__approx_kl=[0.0] * 10,
        train__updates=[1.0] * 10,
    ),
}


def test_a_score_against_the_other_samples_of_a_prompt_is_not_called_flat() -> None:
    """The mean share of the others that a sample beats is one half, whatever is learnt."""
    relative = both([0.5] * 40, rollout__score_std=[0.37] * 40, rollout__kl=line(0, 20, 40)) | {
        "rollout/kl_coef": [0.05] * 40,
        "rollout/objective": line(0.5, -0.5, 40),
    }
    assert found(relative) == []
    assert "reward_flat" in found(relative | {"rollout/score": [0.5, 0.5001] * 20})


def test_a_constant_reward_is_not_called_an_explosion_of_the_kl_too() -> None:
    constant = both([1.0] * 40, rollout__score_std=[0.0] * 40, rollout__kl=line(0, 0.03, 40))
    constant |= {"rollout/kl_coef": [0.05] * 40, "rollout/objective": line(1.0, 0.9985, 40)}
    assert "kl_explodes" not in found(constant)


def test_a_run_that_waits_for_people_is_not_called_starved() -> None:
    waits = changed(time__reward_seconds=[60.0] * 10, time__collect_seconds=[61.0] * 10)
    assert found(waits) == ["starved"]
    assert found(waits, settings={"reward": "collect:labels.db"}) == []


def test_nothing_is_wrong_with_a_healthy_run() -> None:
    assert found(HEALTHY) == []


@pytest.mark.parametrize("name", SICK)
def test_what_is_sick(name: str) -> None:
    first, *others = SICK[name]
    assert found(first) == [name]
    for number, columns in enumerate(others):
        assert name in found(columns), number


@pytest.mark.parametrize("name", NEARLY)
def test_what_looks_sick_and_is_not(name: str) -> None:
    assert found(NEARLY[name]) == []


def test_what_the_settings_explain(tmp_path: Path) -> None:
    never = SICK["eos_never"][0]
    assert found(never, settings={"banned_token_ids": [7]}) == []  # perhaps an end token
    lengths = {"min_completion_tokens": 8, "max_completion_tokens": 8}
    assert found(never, settings=lengths) == []
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert found(never, folder=tmp_path, settings={"banned_token_ids": [7]}) == ["eos_never"]
    assert found(never, folder=tmp_path, settings={"banned_token_ids": [2]}) == []
    raw = both(line(5.0, 6.0))
    assert found(raw, settings={"reward": "runs/reward"}) == ["reward_out_of_range"]
    assert found(raw, settings={"reward": "module:function"}) == []
    assert found(raw) == []
    away = both(line(0.0, 6.0), rollout__score_std=line(0.5, 1.0))
    assert found(away) == ["reward_out_of_range"]
    assert found(away, settings={"reward": "module:function"}) == []
    masked = both(line(0, 2), rollout__masked=[20.0] * 10)
    assert found(masked, settings={"episodes_per_iteration": 4096}) == []
    assert found(masked, settings={"episodes_per_iteration": 256}) == ["episodes_masked"]
    assert found(masked) == []
    assert found(masked, settings={"episodes_per_iteration": None}) == []
    # a reward model's score that stops at its maximum is no task that is solved
    gone = both(
        [0.0, 0.5, 0.9, *[1.2] * 7],
        rollout__score_std=[1.0] * 3 + [0.01] * 7,
        rollout__entropy=[2.0, 1.0, 0.5, *[0.01] * 7],
    )
    assert found(gone, settings={"reward": "runs/reward"}) == ["entropy_gone"]
    assert found(gone, settings={"reward": "module:function"}) == []


def test_more_threads_than_cores() -> None:
    assert found(HEALTHY, machine={"threads": 16, "cores": 2.0}) == ["too_many_threads"]
    assert found(HEALTHY, machine={"threads": 2, "cores": 2.0}) == []
    assert found(HEALTHY, machine={"threads": 2, "cores": 4.0, "processes": 4}) != []
    assert found(HEALTHY, machine={"threads": "8", "cores": 2.0}) == []


FALLING = [1.0 - 0.05 * n for n in range(10)]


def trainer(stage: str, **columns: list[float]) -> dict[str, list[float]]:
    return {f"{stage}/{name}": column for name, column in ({"loss": FALLING} | columns).items()}


def test_losses() -> None:
    assert found(trainer("sft")) == []
    assert found(trainer("sft", loss=[1.0, 1.02] * 5)) == ["loss_flat"]
    assert found(trainer("sft", loss=line(1.0, 1.9))) == ["loss_rises"]
    # the first update is taken at the old weights: what falls later from ruin has risen
    assert found(trainer("sft", loss=[3.0, *line(90.0, 20.0, 9)])) == ["loss_rises"]
    # after the first epoch's fall a loss wavers; and a first minibatch may be an easy one
    assert found(trainer("sft", loss=[3.5, 2.2, 1.95, *[1.8, 2.0] * 40])) == []
    assert found(trainer("sft", loss=[1.0, *line(2.2, 1.55, 59)])) == []
    assert found(trainer("sft", loss=[math.nan] * 6)) == ["not_finite"]


def test_overfitting(tmp_path: Path) -> None:
    above = trainer("reward", accuracy=[0.6] * 5 + [1.0] * 5, heldout_accuracy=[0.7])
    assert found(above) == ["overfit"]
    assert found(trainer("reward", accuracy=[0.9] * 10, heldout_accuracy=[0.8])) == []
    assert found(trainer("sft", heldout_loss=[1.0, 0.8, 0.9])) == ["overfit"]
    assert found(trainer("sft", heldout_loss=[1.0, 0.8, 0.85])) == []
    falls = trainer("dpo", accuracy=line(0.5, 0.88), heldout_accuracy=[0.75, 0.7, 0.65, 0.62])
    assert found(falls) == ["overfit"]
    (tmp_path / "heldout_pairs.jsonl").write_text('{"margin": 1.0}\n' * 5)
    assert found(above, folder=tmp_path) == []  # 0.7 of five pairs has an error of 0.2
    assert found(trainer("reward", accuracy=[0.5] * 10)) == ["chance"]
    assert found(trainer("reward", accuracy=[0.7] * 10)) == []


def test_dpo() -> None:
    def run(chosen: float, rejected: float, **settings: float) -> list[str]:
        columns = trainer("dpo", chosen_reward=line(0, chosen), rejected_reward=line(0, rejected))
        return found(columns, settings=settings)

    assert run(-2.7, -5.4) == ["both_fall"]
    assert run(-1.5, -5.0) == ["both_fall"]
    assert run(-0.1, -2.7) == []
    assert run(0.5, -2.7) == []
    assert run(-0.09, -0.4, beta=0.01) == ["both_fall"]  # 9 nats a text
    assert run(-0.05, -2.0, beta=0.1) == []


def test_every_finding_is_told_with_numbers_and_remedies() -> None:
    names = set()
    for columns, *_ in SICK.values():
        rows = [{k: v[n] for k, v in columns.items()} | {"time/iteration": n} for n in range(10)]
        record = Record(folder=Path("run"), rows=rows, settings={}, machine={})
        for finding in diagnose(record):
            names.add(finding.name)
            assert finding.what.endswith(".")
            assert any(letter.isdigit() for letter in finding.how)
            assert finding.remedies
        text = in_words(record, diagnose(record), "run")
        assert text.startswith("run: 1 finding\n1. ")
        assert "\n   try: " in text
    assert names == set(SICK)
    assert len(AGENT_RULES) + len(TRAINER_RULES) + len(ANY_RULES) == 23


def test_a_run_of_something_else_is_not_judged() -> None:
    record = Record(folder=Path("r"), rows=[{"rollout/ep_rew_mean": 1.0}], settings={}, machine={})
    assert diagnose(record) == []
    assert "no metrics of textrl's agents" in in_words(record, [], "r")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name, column in (("well", [0.1 * n for n in range(6)]), ("sick", [0.1, 0.11] * 4)):
        Path(name).mkdir()
        rows = [
            {"time/step": n, "rollout/score": score, "rollout/kl": 0.01, "rollout/score_std": 1.0}
            for n, score in enumerate(column)
        ]
        Path(name, "progress.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as healthy:
        main(["doctor", "well"])
    assert healthy.value.code == 0
    said = "well: nothing wrong found in 6 iterations, too few to judge whether it learns. The "
    assert capsys.readouterr().out.startswith(said)
    with pytest.raises(SystemExit) as both:
        main(["doctor", "well", "sick"])
    assert both.value.code == 1
    assert "sick: 1 finding\n1. The reward is flat." in capsys.readouterr().out
    with pytest.raises(SystemExit) as other:
        main(["doctor", str(tmp_path / "none")])
    assert other.value.code == 2
    assert "is no folder" in capsys.readouterr().err
    assert [record.folder.name for record in read_records(tmp_path)] == ["sick", "well"]
    with pytest.raises(UserError, match="holds no metrics"):
        read_records(Path(__file__).parent / "envs")


def test_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as looked:
        main(["doctor"])
    said = capsys.readouterr().out
    assert looked.value.code == (1 if "warning: " in said else 0)
    assert "versions: python 3." in said
    assert "usable cores" in said
    assert _warnings(2.0, 2, 50.0) == []
    assert _warnings(2.0, 8, 50.0) == [
        "8 threads on 2 cores wait for one another; set OMP_NUM_THREADS=2"
    ]
    assert _warnings(2.0, 2, 1.0) == ["only 1.0 GB of disk are free; a save may not fit"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::textrl.loop.LossRose")
def test_real_runs_that_are_sick_on_purpose(tmp_path: Path) -> None:
    """At least nine in ten, as the issue asks; all of them when this was written."""
    missed = []
    for number, (name, (expected, work)) in enumerate(doctor_runs.SICK.items()):
        work(tmp_path / str(number))
        names = doctor_runs.findings(tmp_path / str(number))
        if expected not in names:
            missed.append((name, expected, names))
    assert len(missed) <= len(doctor_runs.SICK) // 10, missed


@pytest.mark.slow
def test_real_runs_that_are_healthy(tmp_path: Path) -> None:
    accused = {}
    for number, (name, work) in enumerate(doctor_runs.HEALTHY.items()):
        work(tmp_path / str(number))
        names = doctor_runs.findings(tmp_path / str(number))
        if names:
            accused[name] = names
    assert not accused


@pytest.mark.parametrize("runs", [1.5, "runs/ppo", ["a", 1], {"a": 1}])
def test_runs_that_are_no_list_of_folders(runs: Any) -> None:
    for kind in (DoctorConfig, ReportConfig):
        with pytest.raises(UserError, match=r"\.runs is"):
            kind(runs=runs)

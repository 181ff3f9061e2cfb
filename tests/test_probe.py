"""`textrl probe`: each defect is found on its rung, and healthy agents pass them all."""

import pytest

from textrl.benchmark import probe
from textrl.benchmark.probe import MEANINGS, Rung, climb
from textrl.cli import main, world_commands
from textrl.task_ids import PROBES

ONE = (0,)
DEFECTS = ("WrongSign", "ConstantPrompt", "LastTokenOnly", "CutAtTheTurn")


@pytest.mark.parametrize(
    ("defect", "passes"),
    [
        (name, passes) if passes == 0 else pytest.param(name, passes, marks=pytest.mark.slow)
        for passes, name in enumerate(DEFECTS)
    ],
)
def test_a_defect_is_found_on_its_rung(defect: str, passes: int) -> None:
    rungs = list(climb(f"broken_agents:{defect}", ONE))
    assert [rung.passed for rung in rungs] == [True] * passes + [False]
    assert [rung.task for rung in rungs] == list(PROBES[: passes + 1])
    assert rungs[-1].returns[0] < 0.7  # not by a hair


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo", "sb3:PPO"])
def test_a_healthy_agent_passes(name: str) -> None:
    rungs = list(climb(name, ONE))
    assert [rung.passed for rung in rungs] == [True] * 4, [rung.line() for rung in rungs]


def rung(*returns: float) -> Rung:
    return Rung(
        task=PROBES[1], threshold=0.95, returns=returns, tokens=(512,) * len(returns), seconds=3.2
    )


def test_a_rung_is_judged_by_the_median_of_its_seeds() -> None:
    assert rung(0.2, 0.95, 1.0).passed
    assert not rung(0.94, 0.2, 1.0).passed
    assert rung(0.2, 0.95, 1.0).line() == (
        "passed  TextRLHF/ProbePrompt-v0: mean return 0.950 (seeds 0.200, 0.950, 1.000), threshold "
        "0.95, 512 tokens, 3 s"
    )
    assert rung(0.2).line().startswith("FAILED  ")


def test_every_rung_has_a_meaning() -> None:
    assert list(MEANINGS) == list(PROBES)


def test_the_command_says_what_a_failure_means(monkeypatch, capsys) -> None:
    seen = []

    def climbing(agent: str):
        seen.append(agent)
        return iter([rung(1.0, 1.0), rung(0.2)][: 1 + (agent == "bad")])

    monkeypatch.setattr(probe, "climb", climbing)
    main(["probe", "good"])
    assert capsys.readouterr().out.splitlines()[-1] == "good passes all rungs."
    with pytest.raises(SystemExit, match="1"):
        main(["probe", "--agent", "bad"])
    out = capsys.readouterr().out
    assert "FAILED  TextRLHF/ProbePrompt-v0" in out
    assert "Usually this means: it learns, but not from what it reads" in out
    assert seen == ["good", "bad"]
    assert world_commands.RUN["probe"] is world_commands.run_probe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe"], "agent"),
        (["probe", "pppo"], "no agent named 'pppo' (did you mean 'ppo'?)"),
        (["probe", "mlp:DQN"], "probe sb3:PPO instead"),
        (["probe", "best_of_n"], "scores no text by itself"),
        (["probe", "reference"], "reference has nothing to train"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert error.startswith("textrl: error: ")
    assert error.count("\n") == 1
    assert message in error

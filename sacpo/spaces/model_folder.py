"""Whether a local folder can be a model: the usual mistakes, which show before anything is loaded."""

from __future__ import annotations

from pathlib import Path

_HOW = "give the folder that `save_pretrained` of transformers wrote (config.json, safetensors, tokenizer)"


def folder_problem(path: Path, gguf_file: str | None) -> str:
    """Why a path is no model, with the way out; empty if nothing is wrong with it.

    Args:
        path: An existing path, from `model.path` or a judge's `path`.
        gguf_file: `model.gguf_file`; None means a folder in transformers format.
    """
    if path.is_file():
        way = f"give its folder, and gguf_file: {path.name}" if path.suffix == ".gguf" else _HOW
        return f"{path} is a file, not a model's folder; {way}"
    names = sorted(file.name for file in path.glob("*.gguf"))
    if gguf_file is not None:
        if (path / gguf_file).is_file():
            return ""
        return (
            f"there is no gguf_file {gguf_file} in {path}, which has {', '.join(names) or 'no GGUF file'}; correct it"
        )
    if (path / "config.json").is_file():
        return ""
    if names:
        return f"{path} has no config.json but a GGUF file; set gguf_file: {' or '.join(names)}"
    if (path / "adapter_config.json").is_file():
        return (
            f"{path} holds an adapter of peft, not a model; merge it into its base (`merge_and_unload`, then "
            "`save_pretrained`) and give that folder"
        )
    inside = sorted(file.parent.name for file in path.glob("*/config.json"))
    return f"{path} has no config.json; {_HOW}" + (f", such as {', '.join(inside[-3:])} inside it" if inside else "")

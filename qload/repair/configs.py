"""Copies the quantization config of a side file into config.json, where loaders look for it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qload.calls import ask
from qload.checkpoint import Checkpoint, Folder
from qload.checkpoint.folder import CONFIG
from qload.configs import SECTIONS, find_section
from qload.errors import QloadError
from qload.hookspecs import Claim
from qload.quantization import Quantization
from qload.registry import Method, Registry
from qload.repair.repairs import Repair, find_indent
from qload.resolution import resolve

_KEY, _NAME = SECTIONS[0], "quant_method"


def plan_config(checkpoint: Checkpoint, folder: Folder, registry: Registry) -> Repair | None:
    """config.json with the config that a side file has alone; None where there is none to copy, or it is not sure.

    What config.json says besides stays as it is, byte for byte. The change is offered where the checkpoint, without
    the side file, is then read as it is now with it.
    """
    if CONFIG not in checkpoint.files or not checkpoint.config or find_section(checkpoint.config) is not None:
        return None
    claimed = _find_claim(checkpoint, registry)
    if claimed is None:
        return None
    method, claim = claimed
    section = {_NAME: method.name, **(claim.config or {})}
    before = folder.read(CONFIG, 0, folder.size(CONFIG))
    after = _insert(before, checkpoint.config, section)
    if after is None or not _is_read_alike(checkpoint, section, registry):
        return None
    return Repair(folder.path / CONFIG, f"copy the quantization config of {claim.source}", before, after)


def _find_claim(checkpoint: Checkpoint, registry: Registry) -> tuple[Method, Claim] | None:
    """The surest claim, where it takes a side file's object as its config as it stands."""
    claims: list[tuple[Method, Claim]] = []
    for method in registry.methods():
        hook = method.declaration.get("qload_claim")
        claim: Claim | None = ask(hook, checkpoint.config, checkpoint) if hook is not None else None
        if claim is not None:
            claims.append((method, claim))
    best = max((claim.specificity for _, claim in claims), default=0)
    surest = [pair for pair in claims if pair[1].specificity == best]
    if len(surest) != 1:
        return None
    source, config = surest[0][1].source, surest[0][1].config
    return surest[0] if source != CONFIG and config and checkpoint.read_json(source) == config else None


def _is_read_alike(checkpoint: Checkpoint, section: Mapping[str, Any], registry: Registry) -> bool:
    changed = replace(checkpoint, config={**checkpoint.config, _KEY: section}, files=(CONFIG,))
    try:
        return _describe(resolve(changed, registry)) == _describe(resolve(checkpoint, registry))
    except QloadError:
        return False


def _describe(quantization: Quantization) -> tuple[str, dict[str, Any]]:
    config = quantization.config.model_dump() if quantization.config is not None else {}
    return quantization.method.name, {key: value for key, value in config.items() if key != _NAME}


def _insert(before: bytes, config: Mapping[str, Any], section: Mapping[str, Any]) -> bytes | None:
    """The text of a JSON object with one more member at its end; None where it cannot be put in."""
    try:
        text = before.decode()
    except UnicodeDecodeError:
        return None
    indent = find_indent(text)
    after = (_replace(text, config, section, indent) if _KEY in config else _append(text, section, indent)).encode()
    return after if json.loads(after) == {**config, _KEY: section} else None


def _append(text: str, section: Mapping[str, Any], indent: str | None) -> str:
    end = text.rindex("}")
    head = text[:end].rstrip()
    comma = "" if head.endswith("{") else ","
    member = json.dumps({_KEY: section}, indent=indent)[1:-1].replace("\n", "\r\n" if "\r\n" in text else "\n")
    space = " " if indent is None and comma else ""
    closing = text[len(head) : end] if indent is not None else ""
    return f"{head}{comma}{space}{member.rstrip()}{closing}{text[end:]}"


def _replace(text: str, config: Mapping[str, Any], section: Mapping[str, Any], indent: str | None) -> str:
    """The whole object anew, for its empty section stands somewhere in it."""
    end = text[len(text.rstrip()) :]
    return json.dumps({**config, _KEY: section}, indent=indent, ensure_ascii=text.isascii()) + end

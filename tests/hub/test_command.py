"""The commands on a repository, in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from edits import split_files
from hubs import COMMIT, Hub
from samples import DEMO

HEAVY = "{'torch', 'transformers', 'safetensors', 'numpy'}"


def run(hub: Hub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys\nfrom qload.cli import main\ntry:\n    main({list(arguments)!r})\n"
        f"finally:\n    print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
    )
    known = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_secret"} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known, check=False)


def test_a_repository_is_validated_without_torch(serve: Callable[..., Hub]) -> None:
    hub = serve(model=DEMO)
    done = run(hub, "validate", "hf:org/model@main")
    assert done.stderr == "[]\n"
    assert done.returncode == 0
    assert f"hf:org/model@{COMMIT}" in done.stdout
    assert "compressed-tensors" in done.stdout
    assert {request.name for request in hub.requests} == {"api", "config.json", "model.safetensors"}


def test_what_is_wrong_with_it_is_said(broken: Callable[[str], Path], serve: Callable[..., Hub]) -> None:
    folder = broken(DEMO.name)
    split_files(folder, 2)
    (folder / "model-00001-of-00002.safetensors").unlink()
    done = run(serve(model=folder), "validate", "hf:org/model", "--format", "json")
    assert done.returncode != 0
    (said,) = json.loads(done.stdout)["checkpoints"]
    assert said["place"] == f"hf:org/model@{COMMIT}"
    assert "QL005" in {finding["code"] for finding in said["findings"]}


def test_it_is_planned(serve: Callable[..., Hub]) -> None:
    done = run(serve(model=DEMO), "plan", "hf:org/model", "--tp", "1,2")
    assert done.stderr == "[]\n"
    assert done.returncode == 0
    assert done.stdout.startswith(f"hf:org/model@{COMMIT} (compressed-tensors; ")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("validate", "hf:org/nothing"), {}, "Error: hf:org/nothing: there is no such repository, or it is private"),
        (("validate", "hf:model"), {}, "Error: hf:model: is no address of a repository on the hub"),
        (("validate", "hf:org/model"), {"HF_HUB_OFFLINE": "1"}, "the hub is not asked in offline mode"),
        (("validate", "hf:org/model"), {"HF_TOKEN": ""}, "the repository is gated"),
        (("validate", "hf:org/model"), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the repository cannot be read"),
        (("run", "hf:org/model", "--prompt", "a"), {}, "run `hf download org/model`"),
    ],
)
def test_what_cannot_be_checked_is_one_line(
    arguments: tuple[str, ...], environment: dict[str, str], message: str, serve: Callable[..., Hub], tmp_path: Path
) -> None:
    hub = serve(model=DEMO)
    hub.gated, hub.token = True, "hf_secret"
    done = run(hub, *arguments, **{"HF_HOME": str(tmp_path), **environment})
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 2

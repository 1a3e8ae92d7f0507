"""What docs/validate.md shows is what is printed, and its Python runs."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from edits import copy_checkpoint
from reporting import drop_scales
from samples import DEMO

import qload
from qload.cli import cli
from qload.cli.validate import command

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "validate.md").read_text()
SHOWN = re.findall(r"```\n\$ qload (.*?)\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints of the page, in the current directory."""
    monkeypatch.chdir(tmp_path)
    drop_scales(copy_checkpoint(DEMO, Path("broken")))
    path = copy_checkpoint(DEMO, Path("model")) / "config.json"
    path.write_text(path.read_text().replace('"attention_bias": false', '"attention_bias": False'))


@pytest.mark.usefixtures("checkpoints")
@pytest.mark.parametrize(("arguments", "expected"), SHOWN, ids=[arguments for arguments, _ in SHOWN])
def test_what_is_shown_is_printed(arguments: str, expected: str) -> None:
    output = CliRunner().invoke(cli, arguments.split()).output
    if "concise" in arguments:
        output, expected = " ".join(output.split()), " ".join(expected.split())
    assert output == expected


@pytest.mark.usefixtures("checkpoints")
def test_the_lines_of_python_run() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    with pytest.raises(qload.CheckpointError):
        exec(compile(code, "docs/validate.md", "exec"), {"print": lambda *_: None})


def test_every_option_is_told_of_and_no_other() -> None:
    told = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    assert told - {"--collapse"} == {name for name in options if name.startswith("--")} - {"--collapse"}


def test_the_examples_are_of_the_hook_and_the_action() -> None:
    hook, action = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL))
    (known,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["repos"][0]["hooks"][0]["id"] == known["id"]
    given = action["jobs"]["validate"]["steps"][-1]["with"]
    assert given.keys() <= yaml.safe_load((ROOT / "action.yml").read_text())["inputs"].keys()

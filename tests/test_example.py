"""A stranger's package: installed with pip into an environment of its own, used, and uninstalled again."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from samples import DEMO

import qload
from qload.torch import Layer

EXAMPLE = Path(__file__).parents[1] / "plugins" / "example"
NAME = "qload-example-rowint8"


class Environment:
    """A virtual environment that sees what this one has installed, and has its own besides."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True)
        self.python = folder / "bin" / "python"
        site = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        (Path(site) / "parent.pth").write_text(f"import site; site.addsitedir({ours!r})\n")

    def run(self, *arguments: object, check: bool = True) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV"))}
        done = subprocess.run(
            [self.python, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("stranger") / "venv")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that is not quantized: the demo's, dequantized."""
    folder = tmp_path_factory.mktemp("plain")
    model = qload.load(DEMO)
    save_file(dense(model), folder / "model.safetensors")
    model.config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    return folder


def dense(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    tensors = {f"{name}.weight": qload.dequantize(layer).contiguous() for name, layer in layers.items()}
    rest = {n: p.detach() for n, p in model.named_parameters() if n.rpartition(".")[0] not in layers}
    return tensors | rest


def test_from_installing_to_uninstalling(environment: Environment, plain: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    pip = ("-m", "pip", "--disable-pip-version-check")
    environment.run(*pip, "install", "--no-deps", "--no-build-isolation", "--quiet", EXAMPLE)
    environment.run("-m", "rowint8", plain, made)
    assert "nothing is wrong (rowint8" in environment.run("-m", "qload", "validate", made)
    assert "rowint8  qload-example-rowint8 0.1.0" in environment.run("-m", "qload", "methods")
    assert "added by rowint8 (qload-example-rowint8 0.1.0)\nROWINT001" in environment.run("-m", "qload", "rules")
    assert "from qload-example-rowint8 0.1.0" in environment.run("-m", "qload", "explain", "ROWINT001")
    output = environment.run("-m", "qload", "run", made, "--prompt", "The memory", "--max-new-tokens", 4)
    assert "15 layers rowint8 by row" in output
    assert "rowint8_product" in output
    assert "The memory" in output
    environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, EXAMPLE / "tests")

    environment.run(*pip, "uninstall", "--yes", "--quiet", NAME)
    assert "no installed plugin knows" in environment.run("-m", "qload", "validate", made, check=False)
    assert "rowint8" not in environment.run("-m", "qload", "methods")
    assert "ROWINT001" not in environment.run("-m", "qload", "rules")


def test_the_plain_checkpoint_is_what_the_packed_one_means(plain: Path) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        logits = [qload.load(path, dtype=torch.float32)(ids).logits for path in (plain, DEMO)]
    assert torch.equal(*logits)

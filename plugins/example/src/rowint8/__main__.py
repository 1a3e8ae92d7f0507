"""Makes a checkpoint: `python -m rowint8 PLAIN_CHECKPOINT OUTPUT_FOLDER`."""

import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from rowint8 import RowInt8Config
from rowint8.runtime import quantize


def main(source: Path, target: Path) -> None:
    """Quantize every matrix of a plain checkpoint of one file, but the head's."""
    config = RowInt8Config()
    target.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if tensor.ndim == 2 and not module.endswith(tuple(config.skip)):
            tensors |= {f"{module}.{leaf}": value for leaf, value in quantize(tensor).items()}
        else:
            tensors[name] = tensor
    save_file(tensors, target / "model.safetensors")
    model_config = json.loads((source / "config.json").read_text())
    model_config["quantization_config"] = config.model_dump()
    (target / "config.json").write_text(json.dumps(model_config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, target / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Makes qqq.safetensors with GPTQModel 7.7.0, on a CPU: `python make_qqq.py`.

A random layer, packed by `QQQLinear.pack` and made dense again by `QQQTorchLinear`, with scales by group and without.
"""

import torch
from gptqmodel.nn_modules.qlinear.qqq import QQQTorchLinear
from safetensors.torch import save_file
from torch import Tensor, nn

ROWS, COLUMNS = 128, 256


def make(group: int) -> dict[str, Tensor]:
    torch.manual_seed(group)
    linear = nn.Linear(COLUMNS, ROWS, bias=False, dtype=torch.float16)
    weight = linear.weight.data.float()
    groups = weight.unflatten(1, (-1, group if group > 0 else COLUMNS))
    scales = groups.abs().amax(-1) / 7
    packed = QQQTorchLinear(
        bits=4,
        group_size=group,
        sym=True,
        desc_act=False,
        in_features=COLUMNS,
        out_features=ROWS,
        register_buffers=False,
    )
    extra = weight.abs().amax(1) / 127 if group > 0 else None
    packed.pack(linear, scales, extra)
    values, rows = packed._dequantize_weight_for_torch()
    stored = {name: getattr(packed, name) for name in ("B", "s_channel", "s_group") if hasattr(packed, name)}
    return {**stored, "dense": (values * rows).T}


def main() -> None:
    made = {f"group {group}.{name}": tensor for group in (-1, 128) for name, tensor in make(group).items()}
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, "qqq.safetensors")


if __name__ == "__main__":
    main()

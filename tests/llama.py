"""A Llama that a user could have written: fused projections, of one rank, with the layers' own collectives."""

from pathlib import Path

import torch
from samples import read_config
from torch import Tensor, nn
from torch.nn import functional as F

from qload import Quantization
from qload.torch import (
    MergedColumnParallelLinear,
    ParallelLMHead,
    QKVParallelLinear,
    RowParallelLinear,
    Site,
    VocabParallelEmbedding,
)
from qload.torch.parallel import Group

GROUP = Group()


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Attention(nn.Module):
    """Causal attention with rotary positions; with fewer heads on a rank, of these heads."""

    def __init__(self, config: dict[str, int], site: Site) -> None:
        super().__init__()
        heads, kv_heads, self.head_size = (
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
        )
        hidden = config["hidden_size"]
        self.qkv_proj = QKVParallelLinear(hidden, self.head_size, heads, kv_heads, site.at("qkv_proj"))
        self.o_proj = RowParallelLinear(heads * self.head_size, hidden, site.at("o_proj"))
        self.theta = config["rope_parameters"]["rope_theta"]  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        sizes = [part.size for part in self.qkv_proj.local.parts]
        q, k, v = (self.split(part) for part in self.qkv_proj(x).split(sizes, -1))
        attended = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return out

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_size).transpose(1, 2)

    def rotate(self, x: Tensor) -> Tensor:
        size = self.head_size
        frequencies = self.theta ** -(torch.arange(0, size, 2).float() / size)
        angles = torch.arange(x.shape[2])[:, None] * frequencies
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        first, second = x.chunk(2, -1)
        rotated: Tensor = x * cos + torch.cat((-second, first), -1) * sin
        return rotated


class MLP(nn.Module):
    def __init__(self, config: dict[str, int], site: Site) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        parts = [("gate_proj", inner), ("up_proj", inner)]
        self.gate_up_proj = MergedColumnParallelLinear(hidden, parts, site.at("gate_up_proj"))
        self.down_proj = RowParallelLinear(inner, hidden, site.at("down_proj"))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class Block(nn.Module):
    def __init__(self, config: dict[str, int], site: Site) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.self_attn = Attention(config, site.at("self_attn"))
        self.post_attention_layernorm = RMSNorm(config["hidden_size"], config["rms_norm_eps"])
        self.mlp = MLP(config, site.at("mlp"))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Llama(nn.Module):
    """The model of one rank of a group."""

    def __init__(self, path: Path, quantization: Quantization, group: Group = GROUP) -> None:
        super().__init__()
        config = read_config(path)
        site = Site(quantization, group=group)
        rows, hidden = config["vocab_size"], config["hidden_size"]
        self.model = nn.Module()
        inner = site.at("model")
        self.model.embed_tokens = VocabParallelEmbedding(rows, hidden, inner.at("embed_tokens"))
        self.model.layers = nn.ModuleList(
            Block(config, inner.at(f"layers.{number}")) for number in range(config["num_hidden_layers"])
        )
        self.model.norm = RMSNorm(hidden, config["rms_norm_eps"])
        self.lm_head = ParallelLMHead(rows, hidden, site.at("lm_head"), gather_output=True)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [batch, tokens] into the logits of all tokens, on every rank."""
        x = self.model.embed_tokens(ids)  # type: ignore[operator]
        for block in self.model.layers:  # type: ignore[union-attr]
            x = block(x)
        logits: Tensor = self.lm_head(self.model.norm(x))  # type: ignore[operator]
        return logits

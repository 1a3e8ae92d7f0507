"""Every hook that a plugin can implement, and the types that cross them.

A method's plugin is the module, or object, behind an entry point of the group `qload.methods`; the entry
point's name is the method's name. A function that has a hook's name implements the hook; it may leave out
arguments that it does not use. The declaration hooks must import without torch. The torch hooks stand in
the module that `MethodInfo.runtime` names.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pluggy

from qload.geometry import Kind

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor, nn

    from qload.catalogue import Rule
    from qload.checkpoint import Checkpoint, Storage, TensorEntry
    from qload.declare import ParameterSpec
    from qload.findings import Finding
    from qload.geometry import Geometry
    from qload.torch.kernels.weights import Weight

PROJECT = "qload"
PREFIX = "qload_"
HOOKSPEC_VERSION = 1
"""Raised when a hook changes so that older plugins would break."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Scheme = Hashable
"""What a method does to one module: a frozen value of the plugin's own, without tensors."""


class Parts(StrEnum):
    """In what the parts of a layer that engines fuse, as queries, keys and values, may differ by a method's design."""

    ALIKE = "alike"
    """In nothing that is stored: whoever reads them as one layer has one scheme for it."""
    QUANTIZED = "quantized"
    """In how they are quantized, if all are."""
    ANY = "any"
    """In whether they are quantized, too."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a method can do, as `qload methods` shows it.

    `kv_cache` is whether it has schemes for the keys and values of attention modules, and rounds them; "loaded" says
    that their scales are loaded and not computed with. `quantize` is whether it can quantize a plain checkpoint while
    it is loaded. `tensor_parallel` says in words what limits cutting. `parts` is in what parts of one layer may differ
    without being a fault. A capability that is a hook must agree with the runtime module; the registry checks.
    """

    linear: bool = True
    embedding: bool = False
    experts: bool = True
    activations: bool = False
    kv_cache: bool | Literal["loaded"] = False
    quantize: bool = False
    tensor_parallel: str = "any unit"
    parts: Parts = Parts.ALIKE


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """What a plugin says of its method.

    `config` is the pydantic model of the checkpoint's quantization config, None for a method without one.
    `runtime` is the dotted name of the module with the torch hooks; None means the same module. `presets` are
    configs by the names under which users ask for them, as in `qload.load(path, quantization="int4")`. `side_files` are
    the files beside config.json in which producers write the same config once more, or in its stead. `is_by_place` says
    that numbers in a module's name mean something only where the config writes them: then one module is asked about
    for all that store the same and whose names differ in other numbers.
    """

    summary: str
    config: type[BaseModel] | None
    capabilities: Capabilities
    runtime: str | None = None
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    side_files: tuple[str, ...] = ()
    is_by_place: bool = False
    hookspec_version: int = HOOKSPEC_VERSION


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """A module of the model, as a method sees it when it chooses a scheme.

    `names` are its names: first as the checkpoint has it, then as the model has it where that differs.
    `classes` are the names of its class and of its bases. `stored` are the tensors that the checkpoint
    stores below it, for methods whose config does not list modules, and `tensors` their entries; for an attention also
    those of the modules right below it, as `k_proj.k_scale`. `described`
    is what the weight files' own metadata says of names below it, stored or not: each text of each name once,
    so that more than one are files that contradict each other. Anybody may have written it.
    """

    names: tuple[str, ...]
    kind: Kind = Kind.LINEAR
    classes: tuple[str, ...] = ("Linear",)
    stored: frozenset[str] = field(default_factory=frozenset)
    tensors: Mapping[str, TensorEntry] = field(default_factory=dict, hash=False, repr=False)
    described: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False, repr=False)

    @property
    def name(self) -> str:
        return self.names[0]

    def stores(self, leaves: Collection[str], *, otherwise: bool) -> bool:
        """Whether the checkpoint stores any of these tensors below it; `otherwise` where it stores none at all."""
        return not self.stored.isdisjoint(leaves) if self.stored else otherwise


@dataclass(frozen=True, slots=True)
class Claim:
    """A plugin's word that a checkpoint is its own.

    The claim with the greatest `specificity` wins. `config` is the quantization config, found in
    `source`; None where the checkpoint needs none. `alias` is the method's name that config.json writes,
    where it writes one; a claim that leaves it out is not heard there. `is_native` says that the format has its config
    in that place by its nature, and nowhere else. `beside` is what other files say of the same, each as a whole config,
    to be held against `config`. `fields` are the names that the section in config.json can have, where `config` is
    put in other words than the section's own.
    """

    specificity: int
    config: Mapping[str, Any] | None = None
    source: str = "config.json"
    alias: str | None = None
    is_native: bool = False
    beside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tile:
    """The multiples of output features, `rows`, and input features, `columns`, that a fast kernel needs of a layer.

    `kernel` is its name. Rows are counted of all projections of the same inputs together, which engines fuse.
    """

    rows: int
    columns: int
    kernel: str


class SideFiles(Protocol):
    """The files beside the weights."""

    @property
    def files(self) -> tuple[str, ...]: ...

    def read_json(self, name: str) -> dict[str, Any] | None: ...


class LayerPiece(Protocol):
    """One part of one expert of a layer: what the torch hooks compute with.

    Its tensors are attributes under their specs' names, without axes of parts and experts, and only this
    rank's share: `weight_packed` [out, in / 8], a tensor scale []. An optional tensor that is not there
    is None.
    """

    @property
    def scheme(self) -> Any: ...

    @property
    def out_features(self) -> int: ...

    @property
    def in_features(self) -> int: ...

    @property
    def quantize_activations(self) -> bool: ...

    def agree(self, greatest: Tensor) -> Tensor:
        """The greatest of what all ranks found, element by element, on each of them.

        Where ranks divide the input features, or the heads of keys and values, a hook sees its rank's share of them:
        what it finds in all features of a token, or in all of x, as the sizes that scales are made of, is not what one
        process would find until it has gone through here. (Of the least values, agree on the negated ones.) All ranks
        have to call it, as often and with the same shapes; what is found in a group inside the share is not to be
        agreed on. Where ranks divide nothing that the hook sees, as on one rank, under columns, and with whole experts
        on each, it is the identity.
        """
        ...

    def __getattr__(self, name: str) -> Tensor: ...


class MethodSpecs:
    """Declaration hooks of a method; no torch."""

    @hookspec
    def qload_method_info(self) -> MethodInfo:
        """Say what the method is. Required."""
        raise NotImplementedError

    @hookspec
    def qload_claim(self, config: Mapping[str, Any], files: SideFiles) -> Claim | None:
        """Recognise a checkpoint that names no method, or one by another name, or has its config in a side file.

        `config` is config.json. Every method is asked, the most specific claim wins, a tie is an error.
        """

    @hookspec
    def qload_scheme_for(self, config: Any, module: ModuleInfo) -> Scheme | None:
        """Choose what is done to one module: a frozen, hashable value, or None for not quantized. Required.

        `config` is an instance of the method's config model. Attention modules (`Kind.KV_CACHE`) are asked about
        only where the capability `kv_cache` is true. Raises ValueError, with a one-line reason, where the config
        asks for what the method cannot do.
        """

    @hookspec
    def qload_create_weights(self, scheme: Any, geometry: Geometry) -> Sequence[ParameterSpec]:
        """Declare the tensors of a module: whole tensors, never a rank's. Required.

        The bias and an axis of experts are added by the core.
        """
        raise NotImplementedError

    @hookspec
    def qload_tile(self, scheme: Any, kind: Kind) -> Tile | None:
        """Say what shares of a module the usual fast kernel takes, in engines; None where that is not known.

        `kind` is `Kind.EXPERTS` for experts, also where they are stored one by one. On any other share a slower kernel
        computes, or none does.
        """

    @hookspec
    def qload_check(self, scheme: Any, tensors: Mapping[str, TensorEntry]) -> Iterable[Finding]:
        """Find what the declared shapes and dtypes cannot say, by rules that `qload_rules` declares.

        `tensors` are the stored tensors of one module, by their names below it.
        """
        raise NotImplementedError


class RuntimeSpecs:
    """Torch hooks of a method."""

    @hookspec
    def qload_dequantize(self, layer: LayerPiece) -> Tensor:
        """The weight as the method means it, [out_features, in_features], in the scales' dtype. Required."""
        raise NotImplementedError

    @hookspec
    def qload_process_weights_after_loading(self, layer: nn.Module) -> None:
        """Prepare a whole layer once its last copy has landed. Must be idempotent and safe to reload.

        It runs again on a rank's share of a layer that was loaded whole, where stored tensors may be gone by then.
        """

    @hookspec
    def qload_apply(self, layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
        """Compute x [..., in_features] into [..., out_features]; without it, with the dequantized weight."""
        raise NotImplementedError

    @hookspec
    def qload_weight(self, layer: LayerPiece) -> Weight | str:
        """The weight as integers or small floats with their scales, for a kernel; or in words why it has no such form.

        Its `dequantize` is the answer of `qload_dequantize`, and its `inputs` say all that `qload_apply` does to x. A
        kernel that is chosen for it packs it once, when the layer is loaded; the tensors that are stored are given
        back then, and neither hook is called any more. Without the hook, or a kernel, `qload_apply` computes.
        """
        raise NotImplementedError

    @hookspec
    def qload_embedding(self, layer: LayerPiece, ids: Tensor) -> Tensor:
        """Look rows up: ids [n] of this rank's rows into [n, in_features]. Needed by quantized embeddings."""
        raise NotImplementedError

    @hookspec
    def qload_cache(self, layer: LayerPiece, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Round keys and values [batch, heads, tokens, head size] to what the method's cache would give back.

        `layer` holds what is declared for an attention module (`Kind.KV_CACHE`). Without the hook, its scales are
        loaded and not computed with.
        """
        raise NotImplementedError

    @hookspec
    def qload_apply_experts(self, layer: nn.Module, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """Compute a stack of experts: x [tokens, in], ids and weights [tokens, k], into [tokens, in] of x's dtype.

        `layer.gate_up_proj` and `layer.down_proj` are whole `qload.torch.ExpertLinear`, both of this method, whose
        tensors have an axis of this rank's experts in front; `layer.gate` is what stands between them. Ids count all
        experts, those of other ranks too, which add nothing here. Without the hook, experts are computed one by one,
        as `qload.torch.apply_one_by_one` does.
        """
        raise NotImplementedError

    @hookspec
    def qload_quantize(self, weight: Tensor, scheme: Any) -> Mapping[str, Tensor]:
        """Quantize a dense weight [out_features, in_features]: the declared tensors by name, as they are stored.

        Of one part of one expert; in the dtype that the layer computes in. It is also called with a weight on the
        meta device, which tells shapes and dtypes and has no values to look at. Raises ValueError, with a one-line
        reason, where the scheme needs more than the weight, as calibration data.
        """
        raise NotImplementedError


class SharedSpecs:
    """Hooks of methods and of other plugins; no torch."""

    @hookspec
    def qload_rules(self) -> Iterable[Rule]:
        """Declare the rules that the plugin adds to the catalogue.

        Codes are a prefix of the plugin's own, of 2 to 8 capital letters other than QL, and three digits. A method's
        rules are those of its `qload_check`. A rule of another plugin has a `find`, which is given every checkpoint
        whose config and headers could be read.
        """
        raise NotImplementedError

    @hookspec
    def qload_kernels(self) -> Iterable[str]:
        """Name the kernels that the plugin adds, as `package.module:Class`: subclasses of `qload.torch.kernels.Kernel`.

        They are asked before the built-in ones, in their order; those of a method only for checkpoints of the method.
        The modules are imported when a checkpoint is loaded, and may import torch.
        """
        raise NotImplementedError


class PluginSpecs:
    """Hooks for any plugin, of the entry point group `qload.plugins`; no torch."""

    @hookspec(firstresult=True)
    def qload_open_checkpoint(self, storage: Storage, file: str) -> Checkpoint | None:
        """Open a checkpoint of another format; the first answer that is not None is taken.

        `storage` lists and reads its files; `file` is the one that was asked for, empty where all of them were.
        """

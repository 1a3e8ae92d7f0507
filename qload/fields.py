"""Fields that the configs of several methods have, checked as each of them means them."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from qload.patterns import Dialect, Overrides, Patterns

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NotRead:
    """Marks a field that producers write, and that says nothing of how to load a checkpoint."""


Unread = Annotated[Any, NotRead()]
"""Whatever a field holds that is known and not read."""


def is_read(field: FieldInfo) -> bool:
    """Whether a field of a config says something of how to load a checkpoint."""
    return not any(isinstance(each, NotRead) for each in field.metadata)


def _check_group_size(value: int) -> int:
    if value != -1 and value <= 0:
        raise ValueError("group_size is -1 or positive")
    return value


def _check_edge(value: str) -> str:
    Patterns((value,), Dialect.EDGE)
    return value


def _check_prefixed(value: str) -> str:
    Patterns((value,), prefixed=True)
    return value


def _check_override(value: str) -> str:
    Overrides({value: None})
    return value


_SIZES = {"anyOf": [{"const": -1}, {"minimum": 1}]}

GroupSize = Annotated[int, AfterValidator(_check_group_size), Field(json_schema_extra={**_SIZES})]
"""The input features that share a scale; -1 for all of them."""

Edges = Annotated[list[Annotated[str, AfterValidator(_check_edge)]] | None, Field()]
"""Names of modules in the dialect of transformers, whose regexes are held to compile."""

Prefixed = Annotated[str, AfterValidator(_check_prefixed)]
"""A name, or a regex after `re:`, which is held to compile."""

OverridesByName = dict[Annotated[str, AfterValidator(_check_override)], T]
"""What differs, by regexes of names that are held to compile."""


class Provenance(BaseModel):
    """What tools note beside what loading needs: a config model inherits it, and may read some of it."""

    # Of the models of all methods that are asked whether a checkpoint is theirs, one or none is to be built.
    model_config = ConfigDict(defer_build=True)

    meta: Unread = Field(None, description="What the tool notes of itself and of its settings, in a form of its own.")
    provider: Unread = Field(None, description="The tool that wrote the checkpoint.")
    quantizer: Unread = Field(None, description="The tools that wrote the checkpoint, with their versions.")
    autoround_version: Unread = Field(None, description="The version of the tool that chose how to round.")
    method: Unread = Field(None, description="The method by another name.")
    format: Unread = Field(None, description="How the tensors are stored.")
    checkpoint_format: Unread = Field(None, description="How the tensors are stored.")
    pack_dtype: Unread = Field(None, description="The integers into which values are packed.")
    data_type: Unread = Field(None, description="The family of the numbers that weights are rounded to.")
    desc_act: Unread = Field(None, description="Whether columns were quantized in the order of their activations.")
    sym: Unread = Field(None, description="Whether zero-points lie in the middle.")
    act_group_aware: Unread = Field(None, description="Whether columns were ordered inside their groups.")
    hyb_act: Unread = Field(None, description="An older name of act_group_aware.")
    static_groups: Unread = Field(None, description="Whether scales were found before columns were ordered.")
    true_sequential: Unread = Field(None, description="Whether layers of a block were quantized one after another.")
    damp_percent: Unread = Field(None, description="How much the Hessian was dampened.")
    damp_auto_increment: Unread = Field(None, description="By how much dampening was raised after a failure.")
    mse: Unread = Field(None, description="The power of the error that clipping minimised.")
    iters: Unread = Field(None, description="The steps for which rounding was trained.")
    nsamples: Unread = Field(None, description="The number of samples for calibration.")
    seqlen: Unread = Field(None, description="The length of the samples for calibration.")
    batch_size: Unread = Field(None, description="The samples that were calibrated with at once.")
    dataset: Unread = Field(None, description="The data for calibration.")
    tokenizer: Unread = Field(None, description="The tokenizer of the data for calibration.")
    model_seqlen: Unread = Field(None, description="The length of the samples for calibration.")
    pad_token_id: Unread = Field(None, description="What the samples were padded with.")
    max_input_length: Unread = Field(None, description="The most tokens that a kernel makes room for.")
    block_name_to_quantize: Unread = Field(None, description="The blocks that were quantized.")
    to_quant_block_names: Unread = Field(None, description="The blocks that were quantized.")
    quant_block_list: Unread = Field(None, description="The blocks that were quantized.")
    module_name_preceding_first_block: Unread = Field(None, description="The modules before the first block.")
    cache_block_outputs: Unread = Field(None, description="Whether outputs of blocks were kept while quantizing.")
    modules_to_not_convert: Unread = Field(None, description="The modules that were left alone.")
    lm_head: Unread = Field(None, description="Whether the head was quantized, too.")
    quant_lm_head: Unread = Field(None, description="Whether the head was quantized, too.")
    model_name_or_path: Unread = Field(None, description="The checkpoint that this one was made of.")
    model_file_base_name: Unread = Field(None, description="The name of the weight file, without its ending.")
    backend: Unread = Field(None, description="The kernels that are asked for.")
    use_exllama: Unread = Field(None, description="Which kernels are asked for.")
    disable_exllama: Unread = Field(None, description="Which kernels are asked for.")
    exllama_config: Unread = Field(None, description="Settings of kernels.")
    use_cuda_fp16: Unread = Field(None, description="Which kernels are asked for.")
    dequantize: Unread = Field(None, description="Whether transformers is to turn the weights into plain ones.")
    adapter: Unread = Field(None, description="A low-rank adapter that was trained along.")
    rotation: Unread = Field(None, description="The rotation of the model before it was quantized.")
    device: Unread = Field(None, description="Where the checkpoint was made.")
    pack_impl: Unread = Field(None, description="How values were packed.")
    offload_to_disk: Unread = Field(None, description="Whether modules were kept on disk while quantizing.")
    offload_to_disk_path: Unread = Field(None, description="Where modules were kept while quantizing.")
    parallel_packing: Unread = Field(None, description="Whether modules were packed side by side.")
    mock_quantization: Unread = Field(None, description="Whether nothing but the form was quantized.")
    v2: Unread = Field(None, description="Which algorithm chose how to round.")
    v2_alpha: Unread = Field(None, description="A setting of the algorithm that chose how to round.")
    v2_memory_device: Unread = Field(None, description="Where the algorithm kept its matrices.")
    foem: Unread = Field(None, description="Settings of the algorithm that chose how to round.")
    fallback: Unread = Field(None, description="How modules were rounded that saw too few tokens.")
    failsafe: Unread = Field(None, description="How modules were rounded that saw too few tokens.")
    hessian: Unread = Field(None, description="How the Hessian was gathered.")
    smooth: Unread = Field(None, description="How outliers were smoothed.")
    moe: Unread = Field(None, description="How experts were calibrated.")
    custom: Unread = Field(None, description="Whatever a tool adds.")

"""Rules of modules: which tensors each has, and whether they are those that the config means."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    error(
        "QL201",
        Tier.HEADERS,
        "a tensor that a layer needs and that is not stored",
        failure="Most engines do not ask whether every parameter was loaded. A weight stays zero or whatever the "
        "memory held, a scale multiplies by it, and the model serves nonsense without an error.",
        cure="Export the module again. If it was not meant to be quantized, add it to the config's ignore list, and "
        "store its `weight`.",
        limits="Biases, activation scales and whatever else a scheme can do without are not asked for. Validating "
        "has no model: a layer or a projection of which nothing is stored is judged by the config's count and by its "
        "like in other layers, and loading finds the rest.",
    ),
    error(
        "QL202",
        Tier.HEADERS,
        "a module that the config leaves unquantized and that is stored quantized",
        failure="An engine builds a plain layer, finds no `weight` for it, and stops with a KeyError, leaves the "
        "layer as it was allocated, or copies packed integers into it.",
        cure="Take the module out of the ignore list, or put it under the targets; or store it unquantized.",
    ),
    warning(
        "QL203",
        Tier.HEADERS,
        "an ignore entry that means different modules to different matchers",
        failure="Read as a part of a name, `layers.1` also hits `layers.10`; read as a regular expression, its dot "
        "is any character. What the producer left alone, an engine with another matcher takes for quantized, and the "
        "reverse.",
        cure="Write whole names of modules, or an anchored expression, as `re:^model\\.layers\\.1\\.`.",
        limits="Speaks only where the ways of matching choose different modules among those that are stored.",
    ),
    error(
        "QL204",
        Tier.HEADERS,
        "parts of a fused group that are quantized differently",
        failure="Engines keep query, key and value, and gate and up, as one layer with one scheme. They refuse the "
        "checkpoint after minutes of loading, or read all parts by the scheme of the first.",
        cure="Quantize all parts of the group alike, or put all of them on the ignore list.",
        limits="Silent for methods whose parts may differ. Different values in the parts' scales are another matter: "
        "see QL506.",
    ),
    error(
        "QL205",
        Tier.HEADERS,
        "experts that are missing, too many, stored twice, or of mixed layout",
        failure="Engines stack experts into one tensor. The slice of an absent one stays as it was allocated, and "
        "only the tokens that are routed to it come out wrong; one of another layout is copied as if it were like "
        "the rest.",
        cure="Export all experts in one way, with enough calibration data for each to be seen, or correct the number "
        "of experts in config.json.",
        limits="A number of experts that the config gives for each layer, and layers that predict further tokens, "
        "are not counted.",
    ),
    warning(
        "QL206",
        Tier.HEADERS,
        "a head that is stored though the config ties it to the embedding",
        failure="Engines that tie have no parameter to put it into: some stop with `KeyError: lm_head.weight`, "
        "others drop it and compute with the embedding, which may have been quantized in another way.",
        cure="Set `tie_word_embeddings` to false where the head is to be used, or leave its tensors out.",
        limits="Speaks only where the config itself writes that they are tied. A tied head that is not stored is as "
        "it should be.",
    ),
    warning(
        "QL207",
        Tier.HEADERS,
        "scales of keys and values that are partial, or that nothing maps",
        failure="The layers that lack them run with a scale of 1.0 without a word: an eight-bit cache then cuts off "
        "great values, or loses small ones, and long contexts get worse.",
        cure="Calibrate the cache again and store scales for the keys and the values of every attention layer under "
        "the names of the method, or remove the cache's scheme from the config.",
        limits="Silent where neither the config nor the tensors speak of a quantized cache, and about layers without "
        "attention.",
    ),
    warning(
        "QL208",
        Tier.HEADERS,
        "a bias too many or too few",
        failure="A bias that the model does not have is dropped, and every output is shifted; one that it has and "
        "that is not stored stays as it was allocated.",
        cure="Make the config say what is stored, as with `attention_bias` or `mlp_bias`, or export again. A bias of "
        "zeros may be left out together with its setting.",
        limits="Without a model, a module is compared with its like in other layers.",
    ),
    error(
        "QL209",
        Tier.HEADERS,
        "config and tensors that name modules with different prefixes",
        failure="No entry of the config matches anything: ignored modules are taken for quantized and targets are "
        "not found. A model saved inside another class is stored as `model.language_model.`, and its config still "
        "says `model.`.",
        cure="Write the names in targets and ignore list as the tensors have them.",
        limits="Speaks only where another prefix would make the entries match.",
    ),
    error(
        "QL210",
        Tier.HEADERS,
        "a stored tensor that nothing reads",
        failure="Engines pass over it. It may be left from calibrating, or be a scale under a name that nobody "
        "knows, without which every output of its layer is wrong.",
        cure="Rename the tensor to what the method reads, or leave it out of the export. To load in spite of it: "
        '`qload.load(path, ignore=["QL210"])`.',
        limits="Buffers that older releases of transformers stored, as rotary frequencies, are passed over.",
        waivable=True,
    ),
    error(
        "QL211",
        Tier.HEADERS,
        "a module whose tensors cannot be put into this model",
        failure="The architecture wants its tensors turned, split or joined in a way that only dense ones can be. "
        "Done to packed words or scales, it would give other weights.",
        cure="Leave the module unquantized, or dequantize the checkpoint before it is converted.",
        needs_model=True,
    ),
    error(
        "QL212",
        Tier.HEADERS,
        "an architecture that cannot be built from the config",
        failure="Nothing loads the checkpoint: transformers has no such architecture, or its sizes contradict each "
        "other. Engines with an implementation of their own may take it.",
        cure="Correct the sizes, `model_type` or `architectures` in config.json, or install a release of transformers "
        "that has the architecture. Code that comes with a checkpoint is never run.",
        needs_model=True,
    ),
)

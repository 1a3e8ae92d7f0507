"""Rules of the config: what it says, where, and in which words."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    error(
        "QL101",
        Tier.HEADERS,
        "quantized tensors without a quantization config",
        failure="An engine takes the checkpoint for a plain one: it fails at names that it does not know, with a "
        "KeyError, or passes over them and leaves the layers as they were allocated.",
        cure="Put the `quantization_config` that the quantizing tool wrote into config.json.",
        limits="Silent where an installed method recognises the checkpoint without being named.",
    ),
    warning(
        "QL102",
        Tier.CONFIG,
        "a quantization config that is only in a side file, or nested",
        failure="Engines that look into config.json alone take the checkpoint for a plain one. Each looks into other "
        "side files and other nested sections, so that it loads in one and fails in the next.",
        cure="Copy it to the top of config.json as `quantization_config`: `qload validate --fix` does so.",
        limits="Silent where config.json has it too, and for formats that keep it in the weight files.",
    ),
    error(
        "QL103",
        Tier.CONFIG,
        "two sources of the quantization config that disagree",
        failure="Which one counts differs from engine to engine. With another number of bits or group size the load "
        "fails; with another kind of zero-points or activation order nothing fails, and the same words decode to "
        "other weights.",
        cure="Find the one that the tensors bear out, and make the other say the same, or delete it.",
        limits="A field that only one of them states, another spelling and another order of names are no disagreement.",
    ),
    error(
        "QL104",
        Tier.CONFIG,
        "a method, a format or a scheme that is not known",
        failure="Of a method that it does not know transformers only warns, and loads the tensors as if they were "
        "not quantized. Engines that fall back to a default format have read eight-bit floats as four-bit integers.",
        cure="Correct the name, install the plugin of the method (`qload methods` lists those installed), or export "
        "in a scheme that the finding names as known.",
        limits="It speaks of what the installed plugins can do. A plugin that fails is named with its distribution.",
    ),
    error(
        "QL105",
        Tier.CONFIG,
        "a config that breaks its schema",
        failure="Engines read field by field, with a default for what they cannot use: a number as text, a name that "
        "no list has or a pattern that does not compile becomes a default without a word, or an exception that names "
        "neither the file nor the field.",
        cure="Correct the field that the finding points to: `qload schema METHOD` prints what the method's config "
        "may be.",
        limits="Unknown fields are no error: see QL106.",
    ),
    warning(
        "QL106",
        Tier.CONFIG,
        "a field that is not known",
        failure="Every reader passes over it, so that a misspelt `group_size` leaves the default in force, and the "
        "scales are applied to other columns than they belong to.",
        cure="Correct the spelling, or remove the field. If a newer release of the tool writes it, update the plugin "
        "of the method.",
        limits="Silent about what producers write for their own records, as versions and calibration settings.",
    ),
    warning(
        "QL107",
        Tier.HEADERS,
        "a target or an ignore entry that matches nothing",
        failure="It was meant to match something: one wrong letter, a missing prefix or the mark of an expression, "
        "and a module that was to be left alone is taken for quantized, or the reverse.",
        cure="Write the name as the tensors have it, or remove the entry.",
        limits="Tools write such lists for whole families of models, so that an entry which matches nothing is a "
        "fault only where it is plain which stored name was meant, or where none of the targets matches.",
    ),
    warning(
        "QL108",
        Tier.CONFIG,
        "a dtype that is missing, misspelt, or named twice and differently",
        failure="It decides what the model computes in. Without it one engine takes float32 and needs twice the "
        "memory, another float16, in which a model made for bfloat16 overflows to NaN.",
        cure='Write one `"dtype"` into config.json, as `"dtype": "bfloat16"`; older readers want the same as '
        "`torch_dtype`.",
        limits="One of the two names is enough, and the config of the text model may hold it.",
    ),
)

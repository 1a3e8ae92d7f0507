"""Rules of files: headers, the index, and what lies in a folder."""

from qload.catalogue.rule import Tier, error, warning

RULES = (
    warning(
        "QL001",
        Tier.HEADERS,
        "weights that are only pickled",
        failure="Unpickling runs whatever code the file holds, so that engines and scanners refuse such files or ask "
        "to be told. A pickle cannot be read in part either: each rank reads all of it.",
        cure="Convert the weights to safetensors, as `save_pretrained` of the loaded model does, and publish those. "
        "`qload.load` reads pickled weights only with `allow_pickle=True`.",
        limits="Silent where a safetensors file is there to be read, whatever pickles lie beside it.",
    ),
    error(
        "QL002",
        Tier.HEADERS,
        "a git-LFS pointer in place of a file",
        failure="A clone without git-LFS leaves a text of three lines where the weights should be. Read as "
        "safetensors, its first eight bytes are the length of a header of exabytes: engines stop with "
        "HeaderTooLarge, or run out of memory.",
        cure="Run `git lfs install` and `git lfs pull` in the clone, or download with `hf download REPOSITORY`.",
    ),
    error(
        "QL003",
        Tier.HEADERS,
        "a header that cannot be read, or that contradicts itself",
        failure="Offsets decide which bytes become which tensor. Where they overlap, leave holes or are not as long "
        "as dtype and shape say, one reader refuses the file and another takes bytes of one tensor for those of "
        "another. Of a key that stands there twice, each JSON reader keeps another one.",
        cure="Download the file again. If the published file is the same, write it again with the safetensors library.",
        limits="The order of tensors in the header and any metadata are free.",
    ),
    error(
        "QL004",
        Tier.HEADERS,
        "a truncated file",
        failure="A download that was cut leaves the whole header and a part of the data: names and shapes look "
        "right, and the load fails at its last tensors, or in a bus error where the file is mapped into memory.",
        cure="Download the file again, and compare its size with the one that its publisher shows.",
    ),
    error(
        "QL005",
        Tier.HEADERS,
        "a weight file that is not there",
        failure="The index, or the number in the other files' names, says that there is one more. An engine that "
        "reads whatever files it finds boots without its tensors, leaves their memory as it was, and answers with "
        "garbage; one that goes by the index stops halfway.",
        cure="Download the missing file. Where files were renamed or joined and all tensors are there, rebuild the "
        "index with `qload validate --fix`.",
    ),
    error(
        "QL006",
        Tier.HEADERS,
        "an index that names a tensor that its file does not hold",
        failure="Engines that go by the files never miss the tensor: the server reports healthy, and its output is "
        "wrong. Those that go by the index stop with a KeyError.",
        cure="Where another file holds the tensor, rebuild the index with `qload validate --fix`. Where none does, "
        "download or export that file again.",
    ),
    warning(
        "QL007",
        Tier.HEADERS,
        "an index that is stale, or not there",
        failure="Tensors that the index does not name are loaded by engines that read all files and left out by "
        "those that go by the index, so that two engines serve two models. Wrong totals mislead whatever plans "
        "memory by them.",
        cure="Rebuild the index from the files with `qload validate --fix`.",
        limits="A checkpoint of one file needs no index, and an index needs no totals.",
    ),
    error(
        "QL008",
        Tier.HEADERS,
        "one tensor in several files",
        failure="Which copy is used depends on the order in which an engine reads the files: the last one wins, and "
        "after an upload with another number of files that can be the stale one.",
        cure="Delete the files of the older export; `qload validate --fix` then rebuilds the index.",
        limits="Where an index names the file to take a tensor from, that copy is the one that is read.",
    ),
    warning(
        "QL009",
        Tier.HEADERS,
        "overlapping sets of weight files",
        failure="Two sets hold the same weights, as `consolidated.safetensors` does beside `model-*.safetensors`. "
        "Engines that read every safetensors file load both and stop at names that they do not know; everybody else "
        "downloads twice as much.",
        cure="Keep one set in the repository, or leave the other out of the download, as with `hf download "
        'REPOSITORY --exclude "consolidated*"`.',
        limits="Silent about adapters, pickled weights and files of other names, which nothing shows to be copies of "
        "the model.",
    ),
    error(
        "QL010",
        Tier.DATA,
        "a file whose checksum is not the published one",
        failure="Flipped bytes keep every name, dtype and shape. The model loads, and answers with nonsense now and "
        "then, which passes for a fault of the engine.",
        cure="Delete the file and download it again. If it differs once more, suspect the disk or the memory.",
        limits="Silent where no checksum lies with the file. What the hub's client keeps of a download has some, and "
        "so has a list as SHA256SUMS.",
    ),
    error(
        "QL011",
        Tier.HEADERS,
        "a checkpoint without weights",
        failure="There is nothing to load. Engines say that they cannot find any model weights, after they have "
        "started all of their processes.",
        cure="Download the weight files beside config.json. Where several models lie in one folder, give the path of "
        "one file in place of the folder's; where there is only an adapter, that of the model it is for.",
    ),
    error(
        "QL012",
        Tier.CONFIG,
        "a checkpoint without config.json",
        failure="Nothing says which architecture the tensors belong to, nor how they are quantized: no engine that "
        "builds transformers' models can start.",
        cure="Put config.json beside the weights, from the repository that they come from.",
        limits="Formats whose weight files hold the config themselves need none.",
    ),
    error(
        "QL013",
        Tier.HEADERS,
        "a file that could not be read",
        failure="Nothing is known of what it holds, so that nobody can say whether the checkpoint is sound. The "
        "command exits with 2, whatever else was found.",
        cure="See to permissions, the disk or the network, as the message says, and validate again.",
    ),
)

"""The benchmarks that there are: what each measures, what it needs, and with which options it is run."""

from dataclasses import dataclass

KEPT = "docs/benchmarks"
"""Where figures are kept, below the repository."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A script of this folder, and the file that its figures are kept in.

    `quick` are its options where time is short (with none it is left out then), `full` those where it is not; `minutes`
    is what the shorter takes on 2 cores. `memory` and `disk` are
    gigabytes that it needs. `peers` are packages without which some of its ways are left out. With `gpu` it is run
    on one besides, with `--device cuda`, and the figures are kept in a file of their own.
    """

    script: str
    what: str
    quick: tuple[str, ...]
    full: tuple[str, ...] = ()
    file: str = ""
    minutes: float = 1
    memory: float = 2
    disk: float = 0.1
    peers: tuple[str, ...] = ()
    gpu: bool = False

    @property
    def name(self) -> str:
        return self.script.removesuffix(".py")

    def kept(self, device: str) -> str:
        """The file for figures of that device."""
        stem = self.file or self.name
        return f"{stem}.json" if device == "cpu" else f"{stem}_{device}.json"


READERS = ("fastsafetensors", "runai_model_streamer")
ENTRIES = (
    Entry(
        "loading.py",
        "loading one checkpoint, warm and cold, whole and by ranks, beside the limit and other loaders",
        quick=("--rounds", "3", "--cases", "warm", "cold", "warm 0/4"),
        minutes=4,
        memory=8,
        disk=8,
        peers=READERS,
        gpu=True,
    ),
    Entry(
        "reading.py",
        "the copies of a load, without all that comes before and after, beside the limit",
        quick=("--rounds", "3"),
        minutes=3,
        memory=6,
        disk=2,
    ),
    Entry(
        "computing.py",
        "layers beside torch's own low-bit kernels, and decoding, beside dense ones and torchao",
        quick=("--rounds", "3", "--models", "int4 g128"),
        minutes=4,
        memory=10,
        disk=4,
        peers=("torchao",),
        gpu=True,
    ),
    Entry(
        "grouping.py",
        "experts of a mixture at once by grouped products, beside one after another, eager and compiled",
        quick=("--rounds", "5", "--backend", "aot_eager"),
        full=("--backend", "aot_eager"),
        minutes=1.5,
        memory=6,
        gpu=True,
    ),
    Entry(
        "load_parts.py",
        "the time of each part of a load",
        quick=("--rounds", "3"),
        minutes=1.5,
        memory=4,
    ),
    Entry(
        "load_memory.py",
        "peak memory and time of loading a 4-bit checkpoint and of the first answer, beside transformers",
        quick=("--rounds", "2"),
        minutes=1.5,
        memory=8,
        disk=1.5,
        gpu=True,
    ),
    Entry(
        "quantize_load.py",
        "peak memory and time of quantizing while loading, beside torchao and bitsandbytes",
        quick=("--layers", "6", "--rounds", "2"),
        full=(
            "--layers",
            "6",
        ),
        minutes=2.5,
        memory=6,
        disk=1.5,
        peers=("torchao", "bitsandbytes", "accelerate"),
    ),
    Entry(
        "parallel_load.py",
        "loading and computing on 1, 2 and 4 ranks, beside transformers' tensor parallelism",
        quick=("--rounds", "1"),
        minutes=2.5,
        memory=12,
        disk=3,
        peers=("accelerate",),
    ),
    Entry(
        "plan_speed.py",
        "validating and planning 56,115 tensors, beside parsing their headers",
        quick=("--rounds", "7"),
        minutes=0.5,
    ),
    Entry(
        "validate_speed.py",
        "validating 616 GB of a stand-in, and starting, beside importing torch",
        quick=("--rounds", "7", "--starts", "3"),
        minutes=1,
    ),
    Entry(
        "deep_speed.py",
        "reading all data while validating, beside reading and hashing it",
        quick=("--layers", "6"),
        full=("--layers", "6"),
        minutes=0.5,
        disk=1,
    ),
    Entry(
        "mutate.py",
        "what random changes to real checkpoints come to",
        quick=(),
        full=("--count", "100"),
        file="mutations",
        minutes=20,
        memory=17,
    ),
)

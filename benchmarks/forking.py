"""Runs functions in fresh processes that share one start-up: a template imports once, and forks for every run.

    python benchmarks/forking.py MODULE ...     (what `Template` starts)

A run's process has imported what the template has, and nothing else has happened in it. A GPU cannot be used on both
sides of a fork: only the runs use it, and a template whose imports do is an error.
"""

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory import PERIOD, Trace

Answer = dict[str, Any]
"""What a run gave, with what its process held meanwhile as "trace"; or its "error"."""


@dataclass(frozen=True, slots=True)
class Template:
    """Modules that are imported ahead of every run."""

    modules: Sequence[str]
    environment: dict[str, str] | None = None

    def start(self) -> "Running":
        command = [sys.executable, str(Path(__file__)), *self.modules]
        environment = {**os.environ, **(self.environment or {})}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return Running(subprocess.Popen(command, env=environment, text=True, bufsize=1, **pipes))


class Running:
    """A template that is ready."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._pending = b""

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, function: str, arguments: Sequence[Any], *, count: int = 1, seconds: float = 300) -> list[Answer]:
        """Call `module:function(*arguments, rank)` in so many processes at once; what each of them gave."""
        request = {"function": function, "arguments": arguments, "count": count, "seconds": seconds}
        self._send(json.dumps(request))
        traces = [Trace(process) for process in json.loads(self._read([]))]
        answers: list[Answer] = json.loads(self._read(traces))
        return [{**answer, "trace": trace} for answer, trace in zip(answers, traces, strict=True)]

    def _send(self, text: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(text + "\n")

    def _read(self, traces: Sequence[Trace]) -> str:
        """The next line of the template, and samples until it comes."""
        while b"\n" not in self._pending:
            self._wait(traces)
        line, self._pending = self._pending.split(b"\n", 1)
        return line.decode()

    def _wait(self, traces: Sequence[Trace]) -> None:
        """Take what the template writes next; two lines may come at once, of which a stream would hide the second."""
        if self._process.stdout is None:
            raise SystemExit("the template of the runs has no output")
        output = self._process.stdout.fileno()
        while not select.select([output], [], [], PERIOD)[0]:
            for trace in traces:
                trace.sample()
        found = os.read(output, 1 << 16)
        if not found:
            raise SystemExit(f"the template of the runs ended with {self._process.wait()}")
        self._pending += found


def serve() -> None:
    """Answer requests, line by line, until there are no more."""
    for line in sys.stdin:
        request = json.loads(line)
        children = [fork(request, rank) for rank in range(request["count"])]
        print(json.dumps([process for process, _ in children]), flush=True)
        print(json.dumps([collect(*child, request["seconds"]) for child in children]), flush=True)


def fork(request: dict[str, Any], rank: int) -> tuple[int, int]:
    """Start a run; its process, and where its answer can be read."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    os.close(reader)
    # What a library prints is not to be taken for an answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    os.write(writer, json.dumps(answer(request, rank)).encode())
    os._exit(0)


def answer(request: dict[str, Any], rank: int) -> Answer:
    module, _, name = request["function"].partition(":")
    try:
        found: Answer = getattr(importlib.import_module(module), name)(*request["arguments"], rank)
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = (str(error).strip().splitlines() or [""])[0]
        return {"error": f"{type(error).__name__}: {text} ({Path(last.filename).name}:{last.lineno})"}
    return found


def collect(process: int, reader: int, seconds: float) -> Answer:
    """A run's answer, or what became of it."""
    pieces, late = [], False
    while not late:
        late = not select.select([reader], [], [], seconds)[0]
        piece = b"" if late else os.read(reader, 1 << 16)
        if not piece:
            break
        pieces.append(piece)
    os.close(reader)
    if late:
        os.kill(process, signal.SIGKILL)
    _, ended = os.waitpid(process, 0)
    if late or not pieces:
        return {"error": f"no answer within {seconds:.0f} s" if late else f"ended with {describe(ended)}"}
    found: Answer = json.loads(b"".join(pieces))
    return found


def describe(ended: int) -> str:
    """How a process ended."""
    return f"signal {os.WTERMSIG(ended)}" if os.WIFSIGNALED(ended) else f"status {os.WEXITSTATUS(ended)} and no answer"


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        sys.exit("an import of the template uses the GPU, which its runs then cannot")
    # Else what the imports left would be looked through for garbage in whichever run comes to make the next object.
    gc.collect()
    serve()

"""The names in a config's lists that match nothing."""

import re
from collections.abc import Collection, Iterable, Iterator

from qload.examination import Examination
from qload.findings import Finding, report
from qload.outline.modules import EMBEDDINGS, HEADS
from qload.patterns import REGEX_PREFIX, Dialect, Meaning, NameList, is_class_name
from qload.validation.spelling import find_near
from qload.validation.vocabulary import WRAPPERS, Vocabulary, locate, read_lists, read_vocabulary

_LEAVES = (".weight", ".bias", ".qweight", ".weight_packed")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ESCAPE = re.compile(r"\\[A-Za-z]")


def find_idle_names(found: Examination) -> Iterator[Finding]:
    """QL107: entries that match nothing, where it is plain what they were to match, and lists of targets none does.

    An entry that matches nothing is no fault by itself: tools write lists for families of models, by names that the
    model gives its modules and the checkpoint may not.
    """
    lists = read_lists(found)
    if not lists:
        return
    vocabulary = read_vocabulary(found)
    for names in lists:
        idle = [entry for entry in names.entries if _may_be_idle(entry) and not vocabulary.matches(entry, names)]
        meant = {entry: meaning for entry in idle if (meaning := _find_meaning(entry, names, vocabulary)) is not None}
        yield from _report(meant, names, found)
        if names.meaning is Meaning.TARGET and len(idle) == len(names.entries) and not meant:
            yield from _report_list(idle, names, vocabulary, found)


def _may_be_idle(entry: str) -> bool:
    """Whether an entry's absence could be told: not that of a class, nor of a head or table, which may be tied."""
    words = _WORD.findall(_ESCAPE.sub(" ", entry))
    return not is_class_name(entry) and bool(words) and words[-1] not in (*HEADS, *EMBEDDINGS, "output")


def _find_meaning(entry: str, names: NameList, vocabulary: Vocabulary) -> str | None:
    """The entry that was meant, where one little thing is wrong with this one."""
    if names.is_plain(entry):
        bare = next((entry.removesuffix(leaf) for leaf in _LEAVES if entry.endswith(leaf)), entry)
        if bare != entry and vocabulary.matches(bare, names):
            return bare
        if names.dialect is Dialect.EXACT and (whole := _complete(entry, vocabulary, names.prefixed)) is not None:
            return whole
    elif names.prefixed and names.dialect is Dialect.EXACT and not entry.startswith(REGEX_PREFIX):
        return _mark(entry, names, vocabulary)
    return _correct(entry, names, vocabulary)


def _complete(entry: str, vocabulary: Vocabulary, is_marked: bool) -> str | None:
    """A whole name of which an entry is the end, where nobody leaves out what comes before it."""
    whole = vocabulary.ending(entry)
    if whole is None or entry.partition(".")[0] in _OUTER or whole.removesuffix(f".{entry}") in WRAPPERS:
        return None
    return rf"{REGEX_PREFIX}.*\.{re.escape(entry)}$" if is_marked else whole


_OUTER = (*(wrapper.partition(".")[0] for wrapper in WRAPPERS), "layers", "h", "visual", "vision_tower", "vision_model")
"""Words that names begin with: what begins so lacks what wraps it, and nothing else."""


def _mark(entry: str, names: NameList, vocabulary: Vocabulary) -> str | None:
    """An entry that is a regex and lacks the mark of one."""
    try:
        marked = f"{REGEX_PREFIX}{entry}"
        return marked if vocabulary.matches(marked, names) else None
    except ValueError:
        return None


def _correct(entry: str, names: NameList, vocabulary: Vocabulary) -> str | None:
    """An entry with its one unknown word spelled as the known one that it is nearest to."""
    words = _WORD.findall(_ESCAPE.sub(" ", entry.removeprefix(REGEX_PREFIX)))
    known = vocabulary.words
    unknown = [word for word in words if word not in known and not any(word in other for other in known)]
    near = find_near(unknown[0], known) if len(unknown) == 1 else None
    if near is None:
        return None
    corrected = entry.replace(unknown[0], near)
    return corrected if vocabulary.matches(corrected, names) else None


def _report(meant: dict[str, str], names: NameList, found: Examination) -> Iterator[Finding]:
    for entry, meaning in meant.items():
        place = locate(entry, names, found.checkpoint)
        if place is not None:
            yield report(
                "QL107",
                f"the {_call(names)} entry matches no module",
                where=entry,
                file=place[0],
                found=_explain(names),
                remedy=f"did you mean {meaning}?",
                pointer=place[1],
            )


def _report_list(idle: Iterable[str], names: NameList, vocabulary: Vocabulary, found: Examination) -> Iterator[Finding]:
    """A list of targets of which none matches: what it says is done to nothing."""
    entries = list(idle)
    place = locate(entries[0], names, found.checkpoint)
    if place is not None and not any(_is_elsewhere(entry, names, vocabulary) for entry in entries):
        yield report(
            "QL107",
            "none of the targets matches a module, and nothing is quantized as they say",
            where=".".join(names.keys),
            file=place[0],
            found=_shorten(entries),
            remedy="correct the targets, or leave them out",
            pointer=place[1][:-1],
        )


def _is_elsewhere(entry: str, names: NameList, vocabulary: Vocabulary) -> bool:
    """Whether what an entry names may be stored under another name: the model's own names may differ."""
    last_words = ".".join(entry.rsplit(".", 2)[-2:])
    return names.is_plain(entry) and (vocabulary.rewrap(entry) is not None or vocabulary.ending(last_words) is not None)


def _call(names: NameList) -> str:
    return "ignore" if names.meaning is Meaning.IGNORE else "target"


def _explain(names: NameList) -> str:
    return "an entry is a whole name here" if names.dialect is Dialect.EXACT and not names.below else ""


def _shorten(entries: Collection[str]) -> str:
    first = list(entries)[:3]
    return ", ".join(first) + (f" and {len(entries) - 3} more" if len(entries) > 3 else "")

"""Heads that share the embedding's table, by what the config says."""

from collections.abc import Iterator

from qload.examination import Examination
from qload.findings import Finding, report
from qload.geometry import Kind
from qload.validation.places import list_kin, text_sections

_KEY = "tie_word_embeddings"
_WRAPPERS = ("", "model", "language_model", "model.language_model", "language_model.model", "thinker", "thinker.model")


def find_needless_heads(found: Examination) -> Iterator[Finding]:
    """QL206: the config says in so many words that the head is the embedding's table, and both are stored."""
    written = [(keys, section[_KEY]) for keys, section in text_sections(found.checkpoint.config) if _KEY in section]
    if not written or not all(value is True for _, value in written):
        return
    kin = list_kin(found)
    tables = [each.sample for each in kin if each.sample.geometry.kind is Kind.EMBEDDING]
    for head in (each.sample for each in kin if each.sample.geometry.kind is Kind.LM_HEAD):
        size = (head.geometry.out_features, head.geometry.in_features)
        table = next((each for each in tables if (each.geometry.out_features, each.geometry.in_features) == size), None)
        if head.name.rpartition(".")[0] in _WRAPPERS and table is not None:
            yield report(
                "QL206",
                "the config ties the head to the embedding, and the head is stored too",
                where=head.name,
                file="config.json",
                expected=f"the table of {table.name} alone",
                found=", ".join(found.checkpoint.modules.get(head.name, {})),
                remedy=f"leave out the head, or set {_KEY} to false if it differs from the table",
                pointer=(*written[0][0], _KEY),
            )

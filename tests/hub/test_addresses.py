"""What is an address on the hub, and what it means."""

from pathlib import Path

import pytest

from qload.errors import QloadError
from qload.examination import is_remote
from qload.hub import Address, read_address

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADDRESSES = {
    "hf:org/name": Address("org/name"),
    "hf:org/name/": Address("org/name"),
    "hf://org/name": Address("org/name"),
    "hf:org/name@main": Address("org/name", "", "main"),
    "hf:org/name@refs/pr/1": Address("org/name", "", "refs/pr/1"),
    "hf:org/name@v1.0@2": Address("org/name", "", "v1.0@2"),
    "hf:org/name/m.gguf": Address("org/name", "m.gguf"),
    "hf:org/name/Q4_0/m.gguf@refs/pr/1": Address("org/name", "Q4_0/m.gguf", "refs/pr/1"),
    f"hf:org/name@{COMMIT}": Address("org/name", "", COMMIT),
    f"hf:org/name@{COMMIT}/a/m.gguf": Address("org/name", "a/m.gguf", COMMIT),
    "hf:Org-1/na.me_2.5B": Address("Org-1/na.me_2.5B"),
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_an_address_is_read(text: str) -> None:
    assert read_address(text) == ADDRESSES[text]
    assert read_address(str(Path(text))) == ADDRESSES[text]
    assert read_address(str(ADDRESSES[text])) == ADDRESSES[text]


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:name",
        "hf:org/",
        "hf:org/name@",
        "hf:@main",
        "hf:org/../name",
        "hf:../name",
        "hf:or g/name",
        "hf:org/name@a/../b",
        "hf:org/name@..",
        "hf:org/name@.",
        "hf:org/name\n",
        f"hf:org/{'n' * 100}",
        "hf:org/na--me",
    ],
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(QloadError) as caught:
        read_address(text)
    assert "hf:org/name@revision" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_is_no_address() -> None:
    assert is_remote("hf:org/name")
    assert is_remote(Path("hf:org/name@main"))
    assert not is_remote("/models/hf:org/name")
    assert not is_remote(Path("models"))

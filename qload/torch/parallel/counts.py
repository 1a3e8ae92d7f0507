"""Numbers that all ranks add to, for what one of them shows of all."""

from torch.distributed.distributed_c10d import PrefixStore, _get_default_store


class SharedCount:
    """A number that every rank of the default process group can add to and read at any time, without waiting.

    It lies in the store by which the ranks found each other; who makes one of the same name counts on with it.
    """

    def __init__(self, name: str) -> None:
        self._store = PrefixStore("qload", _get_default_store())
        self._name = name

    def add(self, number: int) -> int:
        """Add to the number; returns what it is then."""
        return int(self._store.add(self._name, number))

    def read(self) -> int:
        """What the number is."""
        return self.add(0)

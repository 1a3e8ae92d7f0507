"""Shares that are no whole tiles of the kernels that engines compute with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qload.findings import Finding, report
from qload.geometry import Kind, replicated
from qload.hookspecs import Tile
from qload.preview.modules import Modules
from qload.preview.natural import NaturalDivider
from qload.roles import FUSED
from qload.validation.wording import name_fitting, name_ranks, name_shares


def find_broken_tiles(
    listed: Sequence[Modules], divider: NaturalDivider, sizes: Sequence[int]
) -> Iterator[tuple[Finding, Modules]]:
    """Where shares split no unit, and are still no tiles: with the modules that are alike, of which one is named."""
    tiler = _Tiler(listed, divider)
    for modules in listed:
        tile = tiler.find_tile(modules)
        wrong = [size for size in sizes if tile is not None and not tiler.fits(modules, tile, size)]
        if tile is not None and wrong:
            yield tiler.report(modules, tile, wrong), modules


@dataclass(frozen=True, slots=True)
class _Tiler:
    """Measures shares against tiles, of modules and of those that engines fuse with them."""

    listed: Sequence[Modules]
    divider: NaturalDivider
    _named: dict[str, Modules] = field(default_factory=dict)

    def find_tile(self, modules: Modules) -> Tile | None:
        """The tile of quantized layers that are known to be divided in some way; vocabularies are padded to any."""
        treatment, geometry = modules.target.treatment, modules.target.geometry
        hook = treatment.method.declaration.get("qload_tile")
        is_layer = geometry.kind in (Kind.LINEAR, Kind.EXPERTS) and self.divider.find_way(modules) is not replicated
        if hook is None or treatment.scheme is None or not is_layer:
            return None
        kind = Kind.EXPERTS if modules.is_mixture else geometry.kind
        tile: Tile | None = hook(treatment.scheme, kind, where=modules.target.name)
        return tile

    def fits(self, modules: Modules, tile: Tile, size: int) -> bool:
        """Whether a share is whole tiles, by itself or with what is fused with it, or splits a unit anyway."""
        measured = self._measure(modules, size)
        if measured is None:
            return True
        rows, columns = measured
        return columns % tile.columns == 0 and (
            rows % tile.rows == 0 or self._count_fused(modules, size) % tile.rows == 0
        )

    def report(self, modules: Modules, tile: Tile, wrong: Sequence[int]) -> Finding:
        """The finding for those numbers of ranks, with the numbers that fit."""
        shares = {size: " x ".join(map(str, self._measure(modules, size) or ())) for size in wrong}
        fitting = [size for size in self.divider.find_sizes(modules) if self.fits(modules, tile, size)]
        return report(
            "QL405",
            f"at {name_ranks(wrong)} a share is no whole tiles of {tile.kernel}: a slower kernel computes it, or none",
            where=modules.target.name,
            expected=f"multiples of {tile.rows} x {tile.columns}",
            found=name_shares(shares),
            remedy=name_fitting(fitting),
        )

    def _measure(self, modules: Modules, size: int) -> tuple[int, int] | None:
        """The output and input features of the first rank's share; None where it would split a unit."""
        shard = self.divider.divide(modules, size)
        return None if shard is None else (sum(cut.padded_size for cut in shard.out), shard.in_.size)

    def _count_fused(self, modules: Modules, size: int) -> int:
        """The output features of a share of all that is fused with a module."""
        parent, _, last = modules.target.name.rpartition(".")
        names = next((names for names in FUSED if last in names), (last,))
        fused = (self._find(f"{parent}.{name}") for name in names)
        sizes = (self._measure(each, size) for each in fused if each is not None)
        return sum(each[0] for each in sizes if each is not None)

    def _find(self, name: str) -> Modules | None:
        if not self._named:
            self._named.update({each: modules for modules in self.listed for each in modules.names})
        return self._named.get(name)

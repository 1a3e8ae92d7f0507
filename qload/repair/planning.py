"""What of a checkpoint's JSON files can be mended, without losing anything that they say."""

from pathlib import Path

from qload.checkpoint import Folder
from qload.errors import QloadError
from qload.examination import open_checkpoint, open_storage
from qload.registry import Registry
from qload.repair.configs import plan_config
from qload.repair.indices import plan_index
from qload.repair.repairs import Repair


def plan_repairs(path: str | Path, registry: Registry) -> tuple[Repair, ...]:
    """The safe changes that clear findings of the checkpoint in the folder `path`; none where there is nothing to do.

    Rebuilds the index (QL005 to QL007) and copies a side file's config into config.json (QL102). Nothing is written:
    that is `apply`'s. Raises QloadError where `path` is no folder of this machine.
    """
    storage, file = open_storage(path)
    if not isinstance(storage, Folder):
        raise QloadError(
            "only a folder of this machine can be mended",
            where=str(path),
            remedy="download the checkpoint, and give the folder",
        )
    checkpoint = open_checkpoint(path, registry)
    planned = (plan_index(storage) if not file else None, plan_config(checkpoint, storage, registry))
    return tuple(repair for repair in planned if repair is not None)

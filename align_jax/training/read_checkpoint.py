"""Reading one checkpoint: its files and tensors are checked, and all processes come to one view of it."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from align_jax.models.finite import spelled
from align_jax.parallel.processes import tried
from align_jax.training.manifest import check_files
from align_jax.training.tensors import check_same, flatten_names, name_on_disk, sums_and_bad

STATE, EXTRA = "state", "extra"  # the items of a checkpoint: arrays, and the document beside them
_logger = logging.getLogger(__name__)


class CheckpointReader:
    """Reads the checkpoints of a folder.

    Args:
      manager: of the folder. handlers: of the items `STATE` and `EXTRA`.
    """

    def __init__(self, manager: ocp.CheckpointManager, handlers: Mapping[str, Any]):
        self._manager, self._handlers, self._directory = manager, handlers, Path(manager.directory)
        self._told_of_old = False

    def read(self, step: int, abstract_state: Any, subset: bool) -> tuple[Any, str]:
        """What a checkpoint holds, and why it is damaged: what one process sees holds for all, and none waits for another."""
        folder, found = self._directory / str(step), None
        parts = (
            lambda _: self._check_files(folder),
            lambda _: self._arrays(step, abstract_state, subset),
            lambda read: self._checked(*read),  # the devices take part
        )
        for part in parts:
            found, reason = tried(f"reading {folder}", functools.partial(part, found), first_line)
            if reason:
                return None, reason
        return found, ""

    def _check_files(self, folder: Path) -> None:
        """Each process checks its share, before anything is read; DamagedFileError names the file."""
        if not check_files(folder, jax.process_index(), jax.process_count()) and not self._told_of_old:
            self._told_of_old = True
            _logger.warning("%s has no list of its files (an earlier version wrote it): only its tensors are checked", folder)

    def _arrays(self, step: int, abstract_state: Any, subset: bool) -> tuple[dict[str, Any], dict[str, Any], Any]:
        """The arrays by name, the document beside them, and how they make a state."""
        leaves, treedef = flatten_names(abstract_state)
        saved = self._manager.item_metadata(step)[STATE]
        if saved is None:
            raise FileNotFoundError(f"{self._directory / str(step) / STATE} has no readable metadata")
        wanted = {name_on_disk(name, saved.tree): ocp.utils.to_shape_dtype_struct(leaf) for name, leaf in leaves.items()}
        check_same(wanted, saved.tree, self._directory / str(step), subset)
        stored = {
            name: jax.ShapeDtypeStruct(leaf.shape, saved.tree[name].dtype, sharding=leaf.sharding)
            for name, leaf in wanted.items()
        }
        args = ocp.args.PyTreeRestore(
            item=stored, restore_args=ocp.checkpoint_utils.construct_restore_args(stored), partial_restore=subset
        )
        # Not by the manager, in which processes wait for one another, and so for one that found a file damaged.
        folder = epath.Path(self._directory / str(step))
        arrays = self._handlers[STATE].restore(folder / STATE, args=args)
        document = self._handlers[EXTRA].restore(folder / EXTRA, args=ocp.args.JsonRestore())
        if (own := document.get("step", step)) != step:  # earlier versions did not say
            raise ValueError(f"it is the checkpoint of step {own}, which was put there under another name")
        return arrays, document, (treedef, [(name, leaf.dtype) for name, leaf in wanted.items()])

    def _checked(self, arrays: dict[str, Any], document: dict[str, Any], state: Any) -> tuple[Any, dict[str, Any]]:
        """The state and its document, where the tensors are what was saved, and numbers."""
        sums, bad = sums_and_bad(arrays)
        for name, checksum in sums.items():
            if checksum != document["checksums"][name]:
                raise ValueError(f"tensor {name!r} is not what was saved (its checksum differs)")
        if bad:
            raise ValueError(f"{spelled(bad)} of its weights hold NaN or infinite values, as the run had them then")
        treedef, leaves = state
        return jax.tree.unflatten(treedef, [arrays[name].astype(dtype) for name, dtype in leaves]), document["extra"]


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    # TensorStore appends its whole configuration
    text = re.split(r"\n| \[tensorstore_spec| See full TensorStore details", str(error).strip())[0]
    if len(text) > 400:
        text = f"{text[:150]} ... {text[-250:]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

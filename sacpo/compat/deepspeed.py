"""Private parts of DeepSpeed, and of the torch extension builder that it calls."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
from pathlib import Path

OPERATOR = "deepspeed_shm_comm"
"""Name of the operator's extension module (`ShareMemCommBuilder.NAME`) and of its build folder."""


def load_operator() -> None:
    """Build or load DeepSpeed's operator for communication on CPUs, one process at a time.

    torch guards the build with a lock file. A killed process leaves the file behind, and every later process waits for
    its removal forever (https://github.com/pytorch/pytorch/issues/189245). This function takes a lock that ends with
    its holder, and the process that has it deletes a lock file of torch that no process holds open. DeepSpeed calls
    `build_shm_op` itself later, in `init_distributed`, and then finds the finished operator.
    """
    from deepspeed.comm.torch import build_shm_op

    torch_lock = operator_folder() / "lock"
    with torch_lock.with_name("sacpo.lock").open("w") as own_lock:
        fcntl.flock(own_lock, fcntl.LOCK_EX)
        if torch_lock.exists() and not _held_open(torch_lock):
            torch_lock.unlink(missing_ok=True)
        build_shm_op()


def operator_folder() -> Path:
    """Folder where torch builds the operator; it is created.

    Each Python environment gets a folder of its own: two that share one would rebuild the operator after each other.
    torch has no public function that names an extension's build folder.
    """
    from torch.utils.cpp_extension import _get_build_directory, get_default_build_root

    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{get_default_build_root()}/sacpo-{environment}")
    return Path(_get_build_directory(OPERATOR, False))


def _held_open(path: Path) -> bool:
    """Whether any process has the file open; True on systems without `/proc`, where this cannot be known."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(path.resolve()):
                return True
    return not Path("/proc/self/fd").exists()

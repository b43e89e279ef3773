"""The models that this process loaded last, so that a later step on the same files need not load them again.

Models come from the cache as they are: whoever takes one changes neither its weights nor its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TypeVar, cast

_LIMIT_BYTES = 2 * 2**30

T = TypeVar("T")


class ModelCache:
    """Keeps models until others need the room, the ones that were used last the longest.

    Args:
        limit: Bytes of all kept models together, by the size of their files. A larger model is not kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._models: dict[Hashable, tuple[int, object]] = {}
        self._pinned: tuple[Hashable, object] | None = None

    def get(self, folders: Sequence[Path], settings: Hashable, load: Callable[[], T], *, pinned: bool = False) -> T:
        """A model from the cache, or loaded now.

        Args:
            folders: The folders that it is loaded from. A file that has changed since (by name, size, time of its last
                change and inode) makes it another model.
            settings: How it is loaded, and what as.
            load: Loads it.
            pinned: Keep it whatever its size, until another model is pinned.
        """
        files = [(path, path.stat()) for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
        key = (settings, tuple((str(path), s.st_size, s.st_mtime_ns, s.st_ino) for path, s in files))
        if pinned:
            if self._pinned is None or self._pinned[0] != key:
                self._pinned = None  # its memory is free before the next one is loaded
                self._pinned = (key, load())
            return cast(T, self._pinned[1])
        size = sum(stat.st_size for _, stat in files)
        if key in self._models:
            self._models[key] = self._models.pop(key)
            return cast(T, self._models[key][1])
        while self._models and size + sum(kept for kept, _ in self._models.values()) > self._limit:
            del self._models[next(iter(self._models))]
        model = load()
        if size <= self._limit:
            self._models[key] = size, model
        return model

    def clear(self) -> None:
        """Free the memory of all kept models."""
        self._models.clear()
        self._pinned = None


MODEL_CACHE = ModelCache(_LIMIT_BYTES)
"""The cache of this process."""

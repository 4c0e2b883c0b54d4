"""Read pieces of files into slabs, the fastest way the file system allows.

Three ways, tried in this order: os.preadv with O_DIRECT (Linux: bytes go from the disk into the slab, the page cache
stays as it was), os.preadv through the page cache, and seek + readinto with one file object per thread (Windows has no
preadv). What the page cache holds may be copied from there before the disk is asked (Linux: RWF_NOWAIT fails at once
where it would have to read), up to the first miss in a file, since each one has the kernel read ahead. May be called
from several threads.
"""

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from offload.checkpoint.layer_layout import SlabRange
from offload.errors import LinkError
from offload.units import PAGE_BYTES, round_up_to_page

# What kernels and file systems answer where O_DIRECT, or an alignment that it needs, is not supported.
_DIRECT_REFUSED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}


@dataclass(frozen=True, slots=True)
class FileBlock:
    """A piece of a file that one thread reads with one call, or with several if a call returns less."""

    file: "SourceFile"
    file_offset: int
    """The first byte to read; a multiple of PAGE_BYTES if is_direct."""
    destination: memoryview
    """Where to. For O_DIRECT a whole number of pages, of which the last may reach past the wanted bytes."""
    wanted_bytes: int
    """How many bytes have to arrive, at most len(destination)."""
    is_direct: bool
    """Whether offset and destination are aligned for O_DIRECT."""

    def transfer(self) -> None:
        """Read until the wanted bytes are there. Raises LinkError if the file ends before, or cannot be read."""
        try:
            self.file.read(self)
        except OSError as error:
            raise LinkError(
                f"Reading {self.file.path} failed at byte {self.file_offset} ({error.strerror or error}); "
                "check the disk it is on, then try again."
            ) from error


class SourceFile:
    """One file, opened once; `read` may be called from several threads at a time. Close it when they are done."""

    def __init__(self, path: Path, *, direct: bool | None = None, cached_first: bool = False) -> None:
        """`direct`: True demands O_DIRECT, False never uses it, None does where it works. Raises OSError, LinkError.

        `cached_first`: read directly only from the first block on that the page cache does not hold.
        """
        self.path = path
        self._is_cached_first = cached_first and hasattr(os, "RWF_NOWAIT")
        self._must_be_direct = direct is True
        self._of_thread = threading.local()
        self._thread_files: list[FileIO] = []
        self._lock = threading.Lock()
        self._identity = _identity(path)
        self._descriptor: int | None = os.open(path, os.O_RDONLY) if hasattr(os, "preadv") else None
        self._direct_descriptor = None
        if direct is not False and self._descriptor is not None:
            self._direct_descriptor = _open_direct(path)
        self._is_direct_refused = False
        if self._must_be_direct and self._direct_descriptor is None:
            self.close()
            raise self._refuses_direct()

    @property
    def is_direct(self) -> bool:
        """Whether reads go through O_DIRECT, as far as is known yet."""
        return self._direct_descriptor is not None and not self._is_direct_refused

    def check_unchanged(self) -> None:
        """Raise LinkError if the path no longer names the file that was opened, as it was then."""
        try:
            is_unchanged = _identity(self.path) == self._identity
        except OSError as error:
            raise LinkError(
                f"{self.path} is gone, although a model streams from it; put it back and restart."
            ) from error
        if not is_unchanged:
            raise LinkError(f"{self.path} was replaced or changed while a model streams from it; restart to use it.")

    def read(self, block: FileBlock) -> None:
        """Fill the block's destination. Raises OSError, or LinkError if the file ends before the wanted bytes."""
        if block.is_direct and self.is_direct:
            try:
                return self._read_direct(block)
            except OSError as error:
                if error.errno not in _DIRECT_REFUSED:
                    raise
                if self._must_be_direct:
                    raise self._refuses_direct() from error
                self._is_direct_refused = True  # some file systems accept the flag and refuse the first read
        self._read_buffered(block)

    def close(self) -> None:
        """Close everything that was opened; no thread may be reading."""
        for descriptor in (self._descriptor, self._direct_descriptor):
            if descriptor is not None:
                os.close(descriptor)
        self._descriptor = self._direct_descriptor = None
        for file in self._thread_files:
            file.close()
        self._thread_files.clear()

    def _read_direct(self, block: FileBlock) -> None:
        assert self._direct_descriptor is not None
        position = self._read_cached(block) if self._is_cached_first else 0
        while position < block.wanted_bytes:
            num_read = os.preadv(self._direct_descriptor, [block.destination[position:]], block.file_offset + position)
            if position + num_read >= block.wanted_bytes:
                return
            num_pages_bytes = num_read // PAGE_BYTES * PAGE_BYTES  # the next call has to start at a page again
            if num_pages_bytes == 0:
                raise self._ends_early(block, position + num_read)
            position += num_pages_bytes

    def _read_cached(self, block: FileBlock) -> int:
        """Copy the block's beginning from the page cache; return its bytes, whole pages unless it is all of them."""
        assert self._descriptor is not None
        position = 0
        while position < block.wanted_bytes:
            piece = block.destination[position : block.wanted_bytes]
            try:
                num_read = os.preadv(self._descriptor, [piece], block.file_offset + position, os.RWF_NOWAIT)
            except OSError:  # it is not there, or a file system or kernel does not know the flag
                self._is_cached_first = False
                break
            if num_read == 0:
                break
            position += num_read
        return position if position == block.wanted_bytes else position // PAGE_BYTES * PAGE_BYTES

    def _read_buffered(self, block: FileBlock) -> None:
        position = 0
        while position < block.wanted_bytes:
            piece = block.destination[position : block.wanted_bytes]
            if self._descriptor is not None:
                num_read = os.preadv(self._descriptor, [piece], block.file_offset + position)
            else:
                file = self._file_of_this_thread()
                file.seek(block.file_offset + position)
                num_read = file.readinto(piece) or 0
            if num_read == 0:
                raise self._ends_early(block, position)
            position += num_read

    def _file_of_this_thread(self) -> FileIO:
        file: FileIO | None = getattr(self._of_thread, "file", None)
        if file is None:
            file = FileIO(self.path)
            self._of_thread.file = file
            with self._lock:
                self._thread_files.append(file)
        return file

    def _refuses_direct(self) -> LinkError:
        return LinkError(f"{self.path} cannot be read with O_DIRECT where it is stored; choose buffered reads instead.")

    def _ends_early(self, block: FileBlock, num_found: int) -> LinkError:
        return LinkError(
            f"{self.path} ends at byte {block.file_offset + num_found}, expected at least "
            f"{block.file_offset + block.wanted_bytes}; it was cut short, fetch it again."
        )


def split_range(
    piece: SlabRange, file: SourceFile, slab: memoryview, *, block_bytes: int, is_direct: bool
) -> Iterator[FileBlock]:
    """Yield the blocks of one range, in file order; `is_direct`: whole pages, for which the layout leaves room."""
    phase = piece.file_offset % PAGE_BYTES if is_direct else 0
    end = piece.file_offset + piece.num_bytes
    window_end = round_up_to_page(end) if is_direct else end
    slab_from_file = piece.slab_offset - piece.file_offset
    for offset in range(piece.file_offset - phase, end, block_bytes):
        block_end = min(offset + block_bytes, window_end)
        destination = slab[offset + slab_from_file : block_end + slab_from_file]
        assert len(destination) == block_end - offset, "the layout's window reaches past the slab"
        yield FileBlock(file, offset, destination, wanted_bytes=min(block_end, end) - offset, is_direct=is_direct)


def _open_direct(path: Path) -> int | None:
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return None


def _identity(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

"""Writing a file as a whole: after an error, a kill or a crash, it has its old content or its new one."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from typing import Any

# A file's name, as open() takes it.
StrOrBytesPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

# As many symbolic links as Linux follows.
_MOST_LINKS = 40
# What a file system without unnamed temporary files, or a kernel that does not know them, answers.
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EINVAL, errno.EISDIR, errno.ENOENT, errno.ENOSYS)
# What a file system answers that does not synchronize folders, or a folder that was not opened for reading.
_NO_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF)


def replace(path: StrOrBytesPath, chunks: Iterable[Any]) -> None:
    """Write chunks of bytes as the content of a file, which is replaced as a whole once they are on the disk.

    Symbolic links are followed. The permissions of a file that exists stay, and so do its owner and group where the
    process may set them. A FIFO, a character device (as /dev/null) and what /dev/stdout or /proc/self/fd name are not
    replaced: they are opened and written.

    Raises:
        OSError: the file cannot be written; what was there is unchanged. Also for a directory, a block device or a
            socket, and for a file without write permission. Its filename is the path, as open() has it.
    """
    with naming(path):
        _replace(os.fsencode(path), chunks)


@contextlib.contextmanager
def naming(path: StrOrBytesPath) -> Iterator[None]:
    """Have errors name the path as open() does: as the caller gave it."""
    try:
        yield
    except OSError as e:
        if e.errno is None:
            raise
        raise OSError(e.errno, e.strerror, os.fspath(path)) from e


def _replace(name: bytes, chunks: Iterable[Any]) -> None:
    status = _status(name)
    mode = stat.S_IFREG if status is None else status.st_mode
    if stat.S_ISDIR(mode) or not os.path.basename(name):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        kind = "block device" if stat.S_ISBLK(mode) else "socket"
        raise OSError(errno.EINVAL, f"expected a file, got a {kind}")
    name, is_descriptor = _follow(name)
    if is_descriptor or not stat.S_ISREG(mode):
        with open(name, "wb") as f:
            f.writelines(chunks)
        return
    if status is not None:  # replacing a file does not ask for its write permission, but opening does
        fds: list[int] = []
        try:
            fds += _opened(name, os.O_WRONLY)
        finally:
            for fd in fds:
                os.close(fd)
    folder, flags = os.path.dirname(name) or b".", os.O_DIRECTORY
    fds = []
    try:
        try:
            fds += _opened(folder, os.O_RDONLY | flags)
        except PermissionError:  # it may be possible to write into it all the same
            fds += _opened(folder, getattr(os, "O_PATH", os.O_RDONLY) | flags)
        try:
            _replace_in(fds[0], os.path.basename(name), status, chunks)
        except OSError as e:
            if e.errno in _NO_NEW_FILE:
                e.strerror = (
                    f"{e.strerror}: a new file beside it takes its place; this needs a folder that can be written"
                )
            raise
    finally:
        for fd in fds:
            os.close(fd)


# What the folder answers if no file can be created in it, or the file cannot be replaced: a bind mount is busy.
_NO_NEW_FILE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)


def _opened(path: bytes, flags: int, mode: int = 0o666, folder: int | None = None) -> Iterator[int]:
    """Open a file when the descriptor is taken.

    A list that is extended by this takes it in C: no KeyboardInterrupt comes between os.open and the list.
    """
    return map(functools.partial(os.open, mode=mode, dir_fd=folder), [path], [flags | os.O_CLOEXEC])


def _replace_in(folder: int, name: bytes, status: os.stat_result | None, chunks: Iterable[Any]) -> None:
    """Replace a file in a folder."""
    # A name of its own length: that of the file may be as long as names can be.
    temporary = f".goptim-{secrets.token_hex(8)}.tmp".encode()
    mode = 0o666 if status is None else 0o600  # the kernel applies the umask to a new file's
    fds: list[int] = []
    try:
        _create(fds, folder, temporary, mode)
        with open(fds[0], "wb", closefd=False) as f:
            f.writelines(chunks)
        if status is not None:
            _keep(fds[0], status)
        os.fsync(fds[0])
        if not os.fstat(fds[0]).st_nlink:
            os.link(f"/proc/self/fd/{fds[0]}", temporary, dst_dir_fd=folder, follow_symlinks=True)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        try:  # noqa: SIM105  # before any other call, after which another interrupt might come
            os.unlink(temporary, dir_fd=folder)
        except FileNotFoundError:
            pass
        raise
    finally:
        for fd in fds:
            os.close(fd)
    try:
        os.fsync(folder)
    except OSError as e:
        if e.errno not in _NO_SYNC:
            raise


def _create(fds: list[int], folder: int, temporary: bytes, mode: int) -> None:
    """Add a temporary file to fds; where that is possible, without a name, so that a killed process leaves nothing."""
    if hasattr(os, "O_TMPFILE") and os.path.exists("/proc/self/fd"):
        try:
            fds += _opened(b".", os.O_WRONLY | os.O_TMPFILE, mode, folder)
            return
        except OSError as e:
            if e.errno not in _NO_UNNAMED:
                raise
    fds += _opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, folder)


def _keep(file: int, status: os.stat_result) -> None:
    """Give a file the owner, the group and the permissions of another, so far as the process may."""
    mode = stat.S_IMODE(status.st_mode)
    mine = os.fstat(file)
    if mine.st_gid != status.st_gid:
        try:
            os.fchown(file, -1, status.st_gid)
        except OSError:  # the file's group is another one, which gets no more than everybody
            mode = mode & ~0o070 & ~stat.S_ISGID | (mode & 0o007) << 3
    if mine.st_uid != status.st_uid:
        try:
            os.fchown(file, status.st_uid, -1)
        except OSError:
            mode &= ~stat.S_ISUID
    os.fchmod(file, mode)


def _status(name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name)
    except FileNotFoundError:
        return None


def _follow(name: bytes) -> tuple[bytes, bool]:
    """The path at the end of symbolic links, or the link that stands for a descriptor of a process and True."""
    for _ in range(_MOST_LINKS):
        folder = os.path.dirname(name)
        if re.fullmatch(rb"/proc/\d+/(task/\d+/)?fd", os.path.realpath(folder or b".")):
            return name, True
        try:
            name = os.path.join(folder, os.readlink(name))
        except OSError:  # it is no link
            return name, False
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

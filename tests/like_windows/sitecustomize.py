"""Python as on Windows, as far as it concerns the project: loaded at start where this folder is on the path.

Signals and calls that Windows lacks are gone, folders cannot be opened, and only files that are open for
writing can be synced to the disk.
"""

import errno
import fcntl
import os
import shutil
import signal
import sys

_SIGNALS = ("SIGUSR1", "SIGUSR2", "SIGHUP")
_CALLS = ("setpgrp", "setpgid", "killpg", "sched_getaffinity", "EX_TEMPFAIL")
for _module, _names in ((signal, _SIGNALS), (os, _CALLS)):
    for _name in _names:
        if hasattr(_module, _name):
            delattr(_module, _name)

_open, _fsync, _status = os.open, os.fsync, fcntl.fcntl


def _open_no_folder(path, flags, *arguments, **options):
    if isinstance(path, (str, bytes, os.PathLike)) and os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
    return _open(path, flags, *arguments, **options)


def _fsync_written(handle):
    number = handle if isinstance(handle, int) else handle.fileno()
    if _status(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    _fsync(number)


os.open, os.fsync = _open_no_folder, _fsync_written
shutil._use_fd_functions = False  # Windows deletes by path
sys.modules["fcntl"] = None

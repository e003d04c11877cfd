"""What a process that runs a submission may do: bounds on resources, files, processes, signals and the network.

Everything here lasts until the process ends and needs no special rights. Where the platform lacks a means, it is left
out, and `confine` says so. Landlock and seccomp are described in the Linux kernel's userspace-api documentation.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import socket
import struct
from pathlib import Path

ROOM_FOR_MEMORY = 2 * 2**30
LARGEST_FILE = 64 * 2**20
MOST_PROCESSES = 64

_libc = ctypes.CDLL(None, use_errno=True)


def limit_resources(seconds: int, device: str) -> None:
    """Bound processor time (in seconds), file size, open files, and on the CPU address space: 2 GiB more than now."""
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: LARGEST_FILE,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 256,
    }
    if device == "cpu":  # CUDA reserves far more addresses than it uses
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + ROOM_FOR_MEMORY
    for kind, most in limits.items():
        allowed = resource.getrlimit(kind)[1]
        most = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(kind, (most, most))


def end_with_parent() -> None:
    """Let this process be killed as soon as its parent is gone."""
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def adopt_orphans() -> None:
    """Become the parent of every process that descends from this one and loses its own parent."""
    _libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def leave_network() -> bool:
    """Move to a network of its own, in which only the loopback device is up. False where that is not allowed."""
    new_user, new_network = 0x10000000, 0x40000000
    flags = new_network if os.geteuid() == 0 else new_network | new_user
    if _libc.unshare(flags) != 0:
        return False
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = struct.pack("16sh14x", b"lo", 1)  # IFF_UP
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
    return True


def confine(folder: Path) -> list[str]:
    """From now on write only below the folder, start no process and signal none. Returns what could not be had."""
    missing = []
    _libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, which both need
    if not _write_only_below(folder):
        missing.append("files outside the scratch folder are not protected (no Landlock)")
    if not _refuse_processes():
        missing.append("new processes and signals are not refused (no seccomp)")
    return missing


# --- files --------------------------------------------------------------------------------------------------------


def _write_only_below(folder: Path) -> bool:
    version = _libc.syscall(444, None, 0, 1)  # landlock_create_ruleset asks for the version
    if version < 1:
        return False
    # Bits: write_file 1, remove_dir 4, remove_file 5, make_char … make_sym 6-12, refer 13 (v2), truncate 14 (v3).
    rights = 1 << 1 | sum(1 << bit for bit in range(4, 13 + (version >= 2) + (version >= 3)))
    ruleset = struct.pack("Q", rights)
    handle = _libc.syscall(444, ruleset, len(ruleset), 0)
    if handle < 0:
        return False
    try:
        writable = _allow(handle, folder, rights) and _allow(handle, Path(os.devnull), 1 << 1)
        return writable and _libc.syscall(446, handle, 0) == 0  # landlock_restrict_self
    finally:
        os.close(handle)


def _allow(handle: int, path: Path, rights: int) -> bool:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, place)
        return _libc.syscall(445, handle, 1, rule, 0) == 0  # landlock_add_rule, LANDLOCK_RULE_PATH_BENEATH
    finally:
        os.close(place)


# --- processes and signals ------------------------------------------------------------------------------------------

# System call numbers: those refused, those whose first argument must be this process, clone, clone3, prlimit64.
_CALLS = {
    "x86_64": (
        0xC000003E,
        (57, 58, 59, 322, 101, 310, 311, 160, 272, 90, 91, 268, 452, 92, 93, 94, 260),
        (62, 200, 234, 129, 297),
        *(56, 435, 302),
    ),
    "aarch64": (
        0xC00000B7,
        (221, 281, 117, 270, 271, 164, 97, 52, 53, 452, 54, 55),
        (129, 130, 131, 138, 240),
        *(220, 435, 261),
    ),
}
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST, _THIRD = 0, 4, 16, 32  # offsets in struct seccomp_data
_THREAD = 0x00010000  # CLONE_THREAD


def _refuse_processes() -> bool:
    """Refuse fork, exec, ptrace, unshare, chmod, chown, raising limits, and signals to others. Threads are allowed."""
    if platform.machine() not in _CALLS:
        return False
    architecture, refused, to_itself, clone, clone3, prlimit = _CALLS[platform.machine()]
    refuse, allow = (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)
    unknown = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)  # the C library then falls back to clone
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), allow, (_LOAD, 0, 0, _NUMBER)]
    for call in refused:
        program += [(_EQUAL, 0, 1, call), refuse]
    program += [(_EQUAL, 0, 1, clone3), unknown]
    program += [(_EQUAL, 0, 4, clone), (_LOAD, 0, 0, _FIRST), (_ANY_BIT, 1, 0, _THREAD), refuse, allow]
    program += [(_EQUAL, 0, 4, prlimit), (_LOAD, 0, 0, _THIRD), (_EQUAL, 1, 0, 0), refuse, allow]
    for call in to_itself:
        program += [(_EQUAL, 0, 4, call), (_LOAD, 0, 0, _FIRST), (_EQUAL, 1, 0, os.getpid()), refuse, allow]
    program += [(_EQUAL, 0, 1, 424), refuse, allow]  # pidfd_send_signal
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    return _libc.prctl(22, 2, header, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER

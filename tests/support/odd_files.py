"""What may stand under the name of a file and is none, and a user who may not read one."""

import contextlib
import os
import socket


def make_socket(path):
    here = os.getcwd()
    # The address of a socket is short.
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(here)


ODD = {
    "folder": os.mkdir,
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "lost": lambda path: path.symlink_to("nowhere"),
}


@contextlib.contextmanager
def without_rights():
    """As nobody, for root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)

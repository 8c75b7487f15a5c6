"""A worker process: tasks in on stdin, results out on stdout, one BLAS thread."""

from __future__ import annotations

import os
import pickle
import struct
import sys
from typing import Any, BinaryIO


def send(stream: BinaryIO, thing: Any) -> None:
    """One length-prefixed pickle."""
    data = pickle.dumps(thing)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """One length-prefixed pickle.

    Raises:
        EOFError: the other side is gone.
    """
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise EOFError
    (length,) = struct.unpack("<Q", prefix)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


def main() -> None:
    """Answer (function, argument) with (result, None) or (None, error) until stdin closes."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            function, argument = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: tuple[Any, Exception | None] = (function(argument), None)
        except Exception as error:  # the parent raises it
            answer = (None, error)
        try:
            send(replies, answer)
        except BrokenPipeError:  # the parent is gone
            return

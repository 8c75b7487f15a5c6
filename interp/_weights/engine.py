"""Tasks run here or in worker processes; finished ones are kept, killed ones run again."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from tqdm.auto import tqdm

from interp._errors import InterpError
from interp._weights.measurement import Job, Measurement, load_measurement, save_measurement
from interp._weights.worker import receive, send

_ATTEMPTS = 3


def run_tasks(
    function: Callable[[Any], Measurement],
    tasks: Sequence[Job],
    *,
    workers: int = 1,
    resume: Path | None = None,
    progress: bool | None = None,
    label: str = "",
) -> list[Measurement]:
    """Results in the order of the tasks, the same bits for any number of workers.

    Args:
        function: a pure, importable function of a task.
        tasks: what to do.
        workers: processes, one thread each; 1 works in this process, with one thread too.
        resume: folder where finished results are kept and found again.
        progress: show bytes per second; by default when stderr is a terminal.
        label: what the progress bar says.
    """
    done: dict[int, Measurement] = {}
    files = _files(tasks, resume)
    for i, file in files.items():
        if file.is_file():
            done[i] = load_measurement(file)
    total = sum(task.nbytes for task in tasks)
    hidden = None if progress is None else not progress
    bar = tqdm(total=total, unit="B", unit_scale=True, disable=hidden, desc=label)
    with bar:
        bar.update(sum(tasks[i].nbytes for i in done))
        # Largest first, so that no worker ends on a giant alone.
        left = sorted(set(range(len(tasks))) - set(done), key=lambda i: -tasks[i].nbytes)
        alone = workers <= 1 or len(left) <= 1
        finished = _here if alone else _elsewhere
        for i, found in finished(function, tasks, left, workers):
            done[i] = found
            if i in files:
                save_measurement(found, files[i])
            bar.update(tasks[i].nbytes)
    return [done[i] for i in range(len(tasks))]


def _files(tasks: Sequence[Job], resume: Path | None) -> dict[int, Path]:
    if resume is None:
        return {}
    try:
        resume.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InterpError(
            f"cannot keep finished tensors in resume={str(resume)!r}: {error}"
        ) from error
    return {i: resume / f"{task.key()}.safetensors" for i, task in enumerate(tasks) if task.on_disk}


@contextmanager
def one_thread() -> Iterator[None]:
    """One BLAS thread, as in the workers: another number gives other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _here(
    function: Callable[[Any], Measurement], tasks: Sequence[Job], left: Sequence[int], _: int
) -> Iterator[tuple[int, Measurement]]:
    with one_thread():
        for i in left:
            yield i, function(tasks[i])


def _elsewhere(
    function: Callable[[Any], Measurement], tasks: Sequence[Job], left: Sequence[int], n: int
) -> Iterator[tuple[int, Measurement]]:
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in left:
        todo.put(i)
    answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    stop = threading.Event()
    arguments = (function, tasks, todo, answers, stop)
    threads = [
        threading.Thread(target=_serve, args=arguments, daemon=True)
        for _ in range(min(n, len(left)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in left:
            i, found = answers.get()
            if isinstance(found, Exception):
                raise found
            yield i, found
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _serve(
    function: Callable[[Any], Measurement],
    tasks: Sequence[Job],
    todo: queue.SimpleQueue[int],
    answers: queue.SimpleQueue[tuple[int, Any]],
    stop: threading.Event,
) -> None:
    """One thread, one worker process: give it tasks until none are left."""
    worker = _start()
    try:
        while not stop.is_set():
            try:
                i = todo.get_nowait()
            except queue.Empty:
                return
            for attempt in range(_ATTEMPTS):
                try:
                    found, error = _ask(worker, (function, tasks[i]))
                    answers.put((i, error if error is not None else found))
                    break
                except (EOFError, BrokenPipeError, OSError):
                    _end(worker)
                    if attempt == _ATTEMPTS - 1:
                        answers.put((i, _gave_up(tasks[i], worker)))
                        return
                    worker = _start()
    finally:
        _end(worker)


def _gave_up(task: Job, worker: subprocess.Popen[bytes]) -> InterpError:
    return InterpError(
        f"{_ATTEMPTS} workers died on {task.tensor} (last exit {worker.returncode}; -9 is mostly "
        f"memory running out); give fewer workers"
    )


def _start() -> subprocess.Popen[bytes]:
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    # Not -m: the package has imported the worker by then, of which runpy would warn.
    command = [sys.executable, "-c", "from interp._weights.worker import main; main()"]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **one, "PYTHONPATH": path},
    )


def _ask(worker: subprocess.Popen[bytes], request: Any) -> Any:
    stdin: IO[bytes] | None = worker.stdin
    stdout: IO[bytes] | None = worker.stdout
    if stdin is None or stdout is None:
        raise EOFError
    send(stdin, request)  # type: ignore[arg-type]
    return receive(stdout)  # type: ignore[arg-type]


def _end(worker: subprocess.Popen[bytes]) -> None:
    for stream in (worker.stdin, worker.stdout):
        if stream is not None:
            with suppress(OSError):  # the pipe of a dead worker
                stream.close()
    try:
        worker.wait(timeout=5)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()

"""Reading and writing beside a network: three stages that run at once."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
_END = object()


def run_stages(
    source: Iterable[ItemT],
    work: Callable[[ItemT], ResultT],
    sink: Callable[[ResultT], None],
    ahead: int = 4,
) -> None:
    """Take items in one thread, work on them in the calling one, and write results in another.

    Order is kept. When the source or the work fails, or Ctrl-C is pressed, what was worked on
    until then still reaches the sink before the exception is raised. A second Ctrl-C ends at once.

    Args:
        source: iterated in a thread of its own.
        work: one item to its result, in the calling thread: networks, and Ctrl-C, want that one.
        sink: called with each result in a thread of its own.
        ahead: items, and results, that may wait between two stages.

    Raises:
        Exception: the first one of any stage.
        KeyboardInterrupt: Ctrl-C.
    """
    errors: list[Exception] = []
    inputs, results = _Pipe(ahead), _Pipe(ahead)

    def read() -> None:
        for item in source:
            inputs.put(item)
        inputs.put(_END)

    def write() -> None:
        while (result := results.get()) is not _END:
            sink(result)

    # When reading ends early, what it handed over is still worked on; when writing does, nothing.
    reader = _thread(read, errors, (inputs,))
    writer = _thread(write, errors, (results, inputs))
    try:
        while (item := inputs.get()) is not _END:
            results.put(work(item))
    except _Stopped:
        pass  # another stage failed; its error is raised below
    finally:
        inputs.stop()
        reader.join()
        try:
            results.put(_END)
        except _Stopped:
            pass  # the writer failed
        writer.join()
    if errors:
        raise errors[0]


class _Stopped(Exception):
    """Raised inside a stage when another one has ended."""


class _Pipe:
    """A bounded queue that either end can stop; what is in it can still be taken."""

    def __init__(self, length: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(length)
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    def put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
        raise _Stopped

    def get(self) -> Any:
        while True:
            stopped = self._stop.is_set()  # before looking: nothing is put after it
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                if stopped:
                    raise _Stopped from None


def _thread(
    function: Callable[[], None], errors: list[Exception], pipes: Iterable[_Pipe]
) -> threading.Thread:
    def guarded() -> None:
        try:
            function()
        except _Stopped:
            pass
        except Exception as error:
            errors.append(error)
            for pipe in pipes:
                pipe.stop()

    # A daemon, so that a second Ctrl-C can end the process at once.
    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    return thread

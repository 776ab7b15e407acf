"""Three stages at once: order, overlap, and what is kept when one of them fails."""

import threading
import time

import pytest

from model_utils.stages import run_stages


def numbers(count, fail_at=None):
    for number in range(count):
        if number == fail_at:
            raise ValueError(f"item {number}")
        yield number


def test_order_and_completeness():
    found = []
    run_stages(numbers(50), lambda x: x * x, found.append, ahead=2)
    assert found == [x * x for x in range(50)]


def test_the_stages_overlap_and_run_where_they_should():
    """0.3 s per stage in turn would take 0.9 s; work stays in the calling thread."""
    threads = {"read": set(), "work": set(), "write": set()}

    def slow(stage, value):
        threads[stage].add(threading.current_thread())
        time.sleep(0.03)
        return value

    begun = time.monotonic()
    run_stages(
        (slow("read", k) for k in range(10)), lambda x: slow("work", x), lambda x: slow("write", x)
    )
    assert time.monotonic() - begun < 0.7
    assert threads["work"] == {threading.current_thread()}
    assert len(set.union(*threads.values())) == 3


@pytest.mark.parametrize("ahead", [1, 4])
@pytest.mark.parametrize("fail_at", [0, 1, 7])
def test_what_was_read_before_an_error_is_written(fail_at, ahead):
    found = []
    with pytest.raises(ValueError, match=f"item {fail_at}"):
        run_stages(numbers(9, fail_at), lambda x: x, found.append, ahead)
    assert found == list(range(fail_at))


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_was_worked_on_before_an_error_is_written(error):
    def work(number):
        if number == 5:
            raise error
        return number

    found = []
    with pytest.raises(error):
        run_stages(numbers(1000), work, found.append)
    assert found == list(range(5))


def test_a_failing_sink_stops_an_endless_source():
    taken = []

    def endless():
        while True:
            taken.append(0)
            yield 0

    def sink(number):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_stages(endless(), lambda x: x, sink, ahead=2)
    assert len(taken) < 20


def test_queues_are_bounded():
    taken = []

    def source():
        for number in range(100):
            taken.append(number)
            yield number

    def work(number):
        time.sleep(0.005)
        assert len(taken) <= number + 4  # two waiting, one in hand, one being read
        return number

    run_stages(source(), work, lambda x: None, ahead=2)

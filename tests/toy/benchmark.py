"""A benchmark whose contenders sleep."""

import time

import numpy as np

from model_utils import benchmarking
from model_utils.benchmarking import Benchmark, Contender, Section


def sleeper(name, seconds, output):
    def build(job):
        length = int(np.load(job.folder / "length.npy"))

        def run():
            if job.settings["log"]:
                with open(job.settings["log"], "a", encoding="utf-8") as log:
                    log.write(f"{name}\n")
            time.sleep(seconds)
            return np.full(length, output)

        return run

    return build


def fail(job):
    raise RuntimeError("it always fails")


def add_options(parser):
    parser.add_argument("--length", type=benchmarking.positive, default=2)
    parser.add_argument("--log", default="")


BENCHMARK = Benchmark(
    network="Toy",
    script=__file__,
    prepare=lambda job: np.save(job.folder / "length.npy", job.settings["length"]),
    sections=(
        Section(
            "sleeping",
            {
                "slow": Contender("slow", sleeper("slow", 0.04, 1.0), ("numpy",), baseline=True),
                "fast": Contender("fast", sleeper("fast", 0.01, 1.00005), ("numpy",)),
                "rough": Contender(
                    "rough", sleeper("rough", 0.001, 1.01), ("numpy",), tolerance=0.02
                ),
                "absent": Contender("absent", fail, ("no_such_package",)),
                "uncompiled": Contender("uncompiled", fail, (), lacking=lambda: "an abacus"),
                "failing": Contender("failing", fail, (), may_fail=True),
            },
            lambda settings: settings["length"],
            compared=True,
        ),
    ),
    unit="items",
    outputs="vectors",
    describe=lambda settings: f"{settings['length']} items",
    add_options=add_options,
    warm_up=3,
)

if __name__ == "__main__":
    raise SystemExit(benchmarking.main(BENCHMARK, "Time sleep."))

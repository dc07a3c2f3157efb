"""How often verify's intervals hold the truth, and how often an artifact at the margin passes.

Data sets are simulated of which the true difference of the two models is known: the mean over many
more of them. For every estimator and number of texts: the share of 95 % intervals that hold it, the
share that passes where the truth is exactly at minus the margin, and the share that fails where
the margin is met twice over.

python -m benchmarks.statistics.bootstrap  2,000 data sets of each kind; about 15 minutes
python -m benchmarks.statistics.bootstrap --quick  300 of each, in about 3
"""

import sys
from argparse import Namespace
from typing import Any

from benchmarks.lib.record import Figure, Results, main, say
from tests.support.simulated import SIMULATIONS, simulate

COVERAGE, FALSE_PASSES, FALSE_FAILS = (0.93, 0.97), 0.05, 0.05
REPLICATES = 500

# of texts; others 50 and 200
SIZES = {
    "mean, continuous": (50, 200, 1000),
    "mean, right or wrong": (100, 200, 1000),
    "mean, a tenth changed": (50, 200, 1000),
    "mean, few lost": (100, 200, 1000),
    "V-measure": (80, 200),
}


def measure(arguments: Namespace) -> Results:
    """Run the simulations."""
    count = 300 if arguments.quick else 2000
    # what chance alone does to a share of so few
    slack = 2 * (0.05 * 0.95 / count) ** 0.5
    figures: list[Figure] = []
    samples: dict[str, Any] = {}
    for name, make in SIMULATIONS.items():
        for size in SIZES.get(name, (50, 200)):
            shares = simulate(make, size, count, REPLICATES)
            label = f"{name}, {size} texts"
            samples[label] = shares
            say(f"{label}: {shares}")
            low, high = COVERAGE[0] - slack, COVERAGE[1] + slack
            figures += [
                Figure(
                    f"{label}: coverage", shares["coverage"], "share", "0.93..0.97",
                    low <= shares["coverage"] <= high,
                ),
                Figure(
                    f"{label}: passes at the margin", shares["false_passes"], "share",
                    f"<= {FALSE_PASSES}", shares["false_passes"] <= FALSE_PASSES + slack,
                ),
                Figure(
                    f"{label}: fails within the margin", shares["false_fails"], "share",
                    f"<= {FALSE_FAILS}", shares["false_fails"] <= FALSE_FAILS + slack,
                ),
            ]  # fmt: skip
    samples["slack"] = slack
    return Results(figures, samples)


if __name__ == "__main__":
    sys.exit(main("bootstrap", measure, quick="300 data sets of each kind."))

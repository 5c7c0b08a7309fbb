"""What a trial under the three attacks that ask costs: LR on MNIST, in ms an iteration.

    python experiments/benchmarks/tailored_trials.py

Beside it, in the same process and in turn, the same trial without attack and under the attack that
is made for the rule; medians of three runs of 60 iterations, with noise where MNIST is not at hand.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import images

from fltrust_repro.training import run_trial

RUNS, ITERATIONS = 3, 60
ASKING = ("tailored", "tailored-persistent", "tailored-pull")


def main() -> None:
    """Time and print them, with their ratios to the attack made for the rule, and to none."""
    print(f"{'rule':14}{'attack':22}{'ms':>6}{'/ its own':>11}{'/ none':>8}")
    for rule in ("trimmed-mean", "krum"):
        settings = [
            images.lr_setting(False, None, rule=rule, attack=attack, iterations=ITERATIONS)
            for attack in ("none", rule, *ASKING)
        ]
        for setting in settings:
            run_trial(replace(setting, iterations=2), seed=10)  # data and machine code are loaded
        taken: dict[str, list[float]] = {setting.attack: [] for setting in settings}
        for _ in range(RUNS):
            for setting in settings:
                taken[setting.attack].append(run_trial(setting, seed=10).seconds)
        each = {attack: 1000 * median(seconds) / ITERATIONS for attack, seconds in taken.items()}
        for attack, ms in each.items():
            ratios = f"{ms / each[rule]:>11.1f}{ms / each['none']:>8.1f}"
            print(f"{rule:14}{attack:22}{ms:>6.0f}{ratios}")


if __name__ == "__main__":
    main()

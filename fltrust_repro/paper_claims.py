"""What the paper says in words about its numbers, each as a check on ours."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from fltrust_repro.claims import Claim, Judged, NotMeasured, Numbers
from fltrust_repro.report import TOLERANCE

RULES = ("krum", "trimmed-mean", "median")
OURS = ("partial", "full")
DIRECTED = "directed-deviation"
CLAIMS: list[Claim] = []


def claim(section: str, text: str) -> Callable:
    """Register a function `(Numbers) -> (holds, evidence)` as the check of a claim."""

    def register(check: Callable[[Numbers], Judged]) -> Callable[[Numbers], Judged]:
        CLAIMS.append(Claim(section, text, check))
        return check

    return register


def _listed(values: Mapping[str, float | Sequence[float]]) -> str:
    def text(value: float | Sequence[float]) -> str:
        return " ".join(f"{v:.2f}" for v in (value if isinstance(value, Sequence) else [value]))

    return "; ".join(f"{name} {text(value)}" for name, value in values.items())


# --- Section 4.2, Table 2


@claim("4.2", "Our attacks reach higher error rates than Gaussian and label flipping (LR, MNIST).")
def _outperform(numbers: Numbers) -> Judged:
    holds, seen = True, {}
    for rule in RULES:
        others = max(numbers.mean("table2a", rule, name) for name in ("gaussian", "label-flip"))
        ours = [numbers.mean("table2a", rule, name) for name in OURS]
        holds = holds and min(ours) > others
        seen[rule] = [others, *ours]
    return holds, "best other, partial, full: " + _listed(seen)


@claim("4.2", "Partial knowledge raises Krum's error rate by around 400% (LR, MNIST).")
def _four_hundred(numbers: Numbers) -> Judged:
    plain, attacked = (numbers.mean("table2a", "krum", name) for name in ("no-attack", "partial"))
    increase = attacked / plain - 1
    return increase >= 3, f"{plain:.2f} to {attacked:.2f}, +{increase:.0%}"


@claim("4.2", "Gaussian attacks have no notable impact (LR, MNIST: within 0.03).")
def _gaussian(numbers: Numbers) -> Judged:
    return _within(numbers, "table2a", "gaussian", TOLERANCE)


@claim("4.2", "Label flipping has limited success for LR (MNIST: within 0.05).")
def _label_flip(numbers: Numbers) -> Judged:
    return _within(numbers, "table2a", "label-flip", 0.05)


def _within(numbers: Numbers, experiment: str, column: str, tolerance: float) -> Judged:
    change = {
        rule: numbers.mean(experiment, rule, column) - numbers.mean(experiment, rule, "no-attack")
        for rule in RULES
    }
    return max(change.values()) <= tolerance, "increase: " + _listed(change)


@claim("4.2", "Krum is less robust to our attacks than trimmed mean and median (LR, MNIST).")
def _krum_is_weakest(numbers: Numbers) -> Judged:
    seen = {rule: [numbers.mean("table2a", rule, name) for name in OURS] for rule in RULES}
    holds = all(
        seen["krum"][i] > max(seen["trimmed-mean"][i], seen["median"][i]) for i in range(len(OURS))
    )
    return holds, "partial, full: " + _listed(seen)


@claim("4.2", "On Breast Cancer, Krum is comparable to median under our attacks (within 0.05).")
def _breast_cancer(numbers: Numbers) -> Judged:
    seen = {
        rule: [numbers.mean("table2e", rule, name) for name in OURS] for rule in ("krum", "median")
    }
    gaps = [abs(a - b) for a, b in zip(seen["krum"], seen["median"])]
    return max(gaps) <= 0.05, "partial, full: " + _listed(seen)


@claim("4.2", "For DNNs, error rates are lower on Breast Cancer than on other data in most cases.")
def _lower_on_breast_cancer(numbers: Numbers) -> Judged:
    lower = [
        numbers.mean("table2e", rule, column) < numbers.mean(f"table2{panel}", rule, column)
        for rule in RULES
        for column in ("no-attack", "gaussian", "label-flip", *OURS)
        for panel in "bcd"
    ]
    return sum(lower) > len(lower) / 2, f"in {sum(lower)} of {len(lower)} comparisons"


@claim("4.2", "Federated learning with the mean has a higher error rate than centralized learning.")
def _centralized(numbers: Numbers) -> Judged:
    seen = {
        data: [
            numbers.mean("section42", row, data)
            for row in ("centralized-dnn", "federated-mean-dnn")
        ]
        for data in ("mnist", "fashion-mnist", "ch-mnist")
    }
    return all(a < b for a, b in seen.values()), "centralized, federated: " + _listed(seen)


@claim("4.2", "The training error still falls when every iteration is attacked (LR, MNIST).")
def _training_still_falls(numbers: Numbers) -> Judged:
    holds, seen = True, {}
    for rule, column in itertools.product(RULES, OURS):
        curves = [trial.result.curve for trial in numbers.trials("table2a", rule, column)]
        start, end = (fmean(curve[k][2] for curve in curves) for k in (0, -1))
        holds = holds and end < start
        seen[f"{rule} {column}"] = [start, end]
    return holds, "loss at iteration 10 and at the end: " + _listed(seen)


# --- Section 4.2, Figures 2 and 3


@claim("4.2", "Our attacks raise error rates as more workers are compromised (Figure 2, LR).")
def _more_compromised(numbers: Numbers) -> Judged:
    seen = {f"{r} {k}": numbers.line("figure2", f"{r}: {k}") for r in RULES for k in OURS}
    return all(line[-1] > line[0] for line in seen.values()), "c = 5 to 30: " + _listed(seen)


@claim("4.2", "Label flipping only slightly raises error rates with more of them (Figure 2, LR).")
def _label_flip_figure(numbers: Numbers) -> Judged:
    seen = {rule: numbers.line("figure2", f"{rule}: label-flip") for rule in RULES}
    holds = all(line[3] - line[0] <= 0.05 for line in seen.values())
    return holds, "c = 5 to 30 (judged to 20): " + _listed(seen)


@claim("4.2", "Our attacks become effective beyond 10% to 15% compromised (Figure 2, LR).")
def _become_effective(numbers: Numbers) -> Judged:
    holds, seen = True, {}
    for rule in ("trimmed-mean", "median"):
        plain = numbers.line("figure2", f"{rule}: no-attack")
        line = numbers.line("figure2", f"{rule}: partial")
        increase = [a - b for a, b in zip(line, plain)]
        holds = holds and increase[3] > 0.05 and increase[0] < 0.05
        seen[rule] = increase
    return holds, "increase by partial knowledge, c = 5 to 30: " + _listed(seen)


@claim("4.2", "Error rates rise with the degree of non-IID, but not of Krum attacked (Figure 3).")
def _non_iid(numbers: Numbers) -> Judged:
    lines = ("no-attack", *OURS)
    seen = {f"{r} {k}": numbers.line("figure3", f"{r}: {k}") for r in RULES[1:] for k in lines}
    return all(line[-1] > line[0] for line in seen.values()), "p = 0.1 to 0.9: " + _listed(seen)


# --- Section 4.2, Figures 4 and 5


def _ends(numbers: Numbers, figure: str, rows: Sequence[str], rising: bool) -> Judged:
    seen = {row: numbers.line(figure, row) for row in rows}
    sign = 1 if rising else -1
    holds = all(sign * (line[-1] - line[0]) > 0 for line in seen.values())
    return holds, _listed(seen)


@claim("4.2", "Error rates fall with more local rounds, with and without attack (Figure 4a).")
def _rounds(numbers: Numbers) -> Judged:
    return _ends(numbers, "figure4a", ("no-attack", "partial"), rising=False)


@claim("4.2", "With 10 local rounds our attack still raises error rates by over 30% (Figure 4a).")
def _ten_rounds(numbers: Numbers) -> Judged:
    plain, attacked = (numbers.line("figure4a", row)[-1] for row in ("no-attack", "partial"))
    return attacked > 1.3 * plain, f"{plain:.3f} to {attacked:.3f}, +{attacked / plain - 1:.0%}"


@claim("4.2", "Our attack is more effective with more worker devices (Figure 4b).")
def _more_workers(numbers: Numbers) -> Judged:
    return _ends(numbers, "figure4b", ("partial",), rising=True)


@claim("4.2", "More devices estimate more changing directions right (paper: DNN; here LR, median).")
def _directions(numbers: Numbers) -> Judged:
    seen = {}
    for m in (50, 100):
        trials = numbers.trials("figure4b", "partial", f"m = {m}")
        known = [trial.result.notes.get("direction agreement") for trial in trials]
        if None in known:
            raise NotMeasured("direction agreement")
        seen[f"m = {m}"] = fmean(known)
    return seen["m = 100"] > seen["m = 50"], _listed(seen)


@claim("4.2", "Our attack is less effective as more values are trimmed (Figure 5a).")
def _beta(numbers: Numbers) -> Judged:
    return _ends(numbers, "figure5a", ("partial",), rising=False)


@claim("4.2", "Without attack, trimming more raises the error rate slightly (Figure 5a).")
def _beta_plain(numbers: Numbers) -> Judged:
    line = numbers.line("figure5a", "no-attack")
    return 0 <= line[-1] - line[0] <= 0.05, _listed({"no-attack": line})


@claim("4.2", "The Krum attack is the more effective, the smaller epsilon is (Figure 5b).")
def _epsilon(numbers: Numbers) -> Judged:
    return _ends(numbers, "figure5b", OURS, rising=False)


@claim("4.2", "Error rates rise as more iterations are poisoned (Figure 5c).")
def _poisoned(numbers: Numbers) -> Judged:
    return _ends(numbers, "figure5c", OURS, rising=True)


# --- Tables 3 to 8


@claim("4.2", "With the best global model kept, our attacks still raise error rates (Table 3).")
def _best_model(numbers: Numbers) -> Judged:
    lowest = {
        (rule, column): fmean(
            trial.result.lowest_error_rate for trial in numbers.trials("table3", rule, column)
        )
        for rule in RULES
        for column in ("no-attack", "partial")
    }
    seen = {rule: [lowest[rule, "no-attack"], lowest[rule, "partial"]] for rule in RULES}
    return all(b > 1.5 * a for a, b in seen.values()), "no attack, partial: " + _listed(seen)


@claim("4.3", "The Krum attack transfers to trimmed mean and median (Table 4).")
def _krum_transfers(numbers: Numbers) -> Judged:
    return _transfers(numbers, "krum-attack", ("trimmed-mean", "median"))


@claim("4.3", "The trimmed mean attack transfers to median (Table 4).")
def _trimmed_mean_transfers(numbers: Numbers) -> Judged:
    return _transfers(numbers, "trimmed-mean-attack", ("median",))


def _transfers(numbers: Numbers, attack: str, rules: Sequence[str]) -> Judged:
    cells = {rule: [("table4", row, rule) for row in ("no-attack", attack)] for rule in rules}
    seen = {rule: [numbers.mean(*cell) for cell in pair] for rule, pair in cells.items()}
    holds = all(numbers.above(pair[1], pair[0]) for pair in cells.values())
    return holds, "no attack, attacked: " + _listed(seen)


@claim("4.3", "The trimmed mean attack does not transfer to Krum (Table 4: within 0.03).")
def _not_to_krum(numbers: Numbers) -> Judged:
    plain, attacked = (
        numbers.mean("table4", row, "krum") for row in ("no-attack", "trimmed-mean-attack")
    )
    return attacked - plain <= TOLERANCE, f"{plain:.2f} to {attacked:.2f}"


@claim("4.4", "240 poisoned examples raise centralized learning's error rate by around 60%.")
def _centralized_poisoned(numbers: Numbers) -> Judged:
    plain, poisoned = (
        numbers.mean("section44", row, "mnist-6000-lr")
        for row in ("centralized-clean", "centralized-bga")
    )
    increase = poisoned / plain - 1
    return increase >= 0.5, f"{plain:.3f} to {poisoned:.3f}, +{increase:.0%}"


@claim("4.4", "Back-gradient has limited success on robust rules (Table 5: within 0.03).")
def _back_gradient_limited(numbers: Numbers) -> Judged:
    seen = {
        rule: [
            numbers.mean("table5", rule, column) - numbers.mean("table5", rule, "no-attack")
            for column in ("single-worker", "uniform")
        ]
        for rule in RULES
    }
    return max(itertools.chain(*seen.values())) <= TOLERANCE, "increase: " + _listed(seen)


@claim("4.4", "Distributed uniformly, it raises the mean rule's error rate by 50% (over 25%).")
def _back_gradient_mean(numbers: Numbers) -> Judged:
    plain, poisoned = (numbers.mean("table5", "mean", name) for name in ("no-attack", "uniform"))
    return poisoned > 1.25 * plain, f"{plain:.3f} to {poisoned:.3f}, +{poisoned / plain - 1:.0%}"


@claim("4.4", "Our attacks reach higher error rates than back-gradient on every rule (Table 5).")
def _more_than_back_gradient(numbers: Numbers) -> Judged:
    seen = {}
    for rule in ("mean", *RULES):
        data = [numbers.mean("table5", rule, name) for name in ("single-worker", "uniform")]
        seen[rule] = [max(data), min(numbers.mean("table5", rule, name) for name in OURS)]
    holds = all(ours > data for data, ours in seen.values())
    return holds, "back-gradient at most, ours at least: " + _listed(seen)


@claim("5", "LFR is comparable to ERR or better (Table 6: at most 0.03 above).")
def _lfr(numbers: Numbers) -> Judged:
    return _defenses_compared(numbers, "lfr", "err", 9)


@claim("5", "Union is comparable to LFR or better in most cases (Table 6: at most 0.03 above).")
def _union(numbers: Numbers) -> Judged:
    return _defenses_compared(numbers, "union", "lfr", 7)


def _defenses_compared(numbers: Numbers, better: str, other: str, least: int) -> Judged:
    seen, good = {}, 0
    for rule, column in itertools.product(RULES, ("no-attack", "krum", "trimmed-mean")):
        pair = [numbers.mean("table6", f"{rule}-{name}", column) for name in (better, other)]
        good += pair[0] <= pair[1] + TOLERANCE
        seen[f"{rule}, {column}"] = pair
    return good >= least, f"in {good} of 9 cases; {better}, {other}: " + _listed(seen)


@claim("5", "With LFR or Union, trimmed mean is as good under its attack as without (within 0.03).")
def _lfr_defends(numbers: Numbers) -> Judged:
    seen = {
        name: [
            numbers.mean("table6", f"trimmed-mean-{name}", column)
            for column in ("no-attack", "trimmed-mean")
        ]
        for name in ("lfr", "union")
    }
    return all(b - a <= TOLERANCE for a, b in seen.values()), _listed(seen)


@claim("5", "The Krum attack still raises the error rate of Krum with LFR (Table 6: by over 0.2).")
def _krum_beats_lfr(numbers: Numbers) -> Judged:
    plain, attacked = (numbers.mean("table6", "krum-lfr", name) for name in ("no-attack", "krum"))
    return attacked > plain + 0.2, f"{plain:.2f} to {attacked:.2f}"


@claim("A", "The Krum attack transfers to Bulyan: its error rate more than doubles (Table 7b).")
def _bulyan(numbers: Numbers) -> Judged:
    plain, *attacked = (
        numbers.mean("table7b", row, "bulyan") for row in ("no-attack", "partial", "full")
    )
    return min(attacked) > 2 * plain, _listed({"none, partial, full": [plain, *attacked]})


@claim("B", "On Krum, both goals reach high error rates (Table 8: above 0.5).")
def _goals_krum(numbers: Numbers) -> Judged:
    seen = {goal: numbers.mean("table8", "krum", goal) for goal in ("deviation", DIRECTED)}
    return min(seen.values()) > 0.5, _listed(seen)


@claim("B", "On trimmed mean and median, the directed goal reaches higher error rates (Table 8).")
def _goals_others(numbers: Numbers) -> Judged:
    seen = {
        rule: [numbers.mean("table8", rule, goal) for goal in ("deviation", DIRECTED)]
        for rule in RULES[1:]
    }
    holds = all(
        numbers.above(("table8", rule, DIRECTED), ("table8", rule, "deviation"))
        for rule in RULES[1:]
    )
    return holds, "deviation, directed: " + _listed(seen)

"""Says of a run that did not train that it did not, and what is the likely reason."""

from mnist_report import Row

BASELINE = "none"
# Guessing one of ten digits is right in about one case of ten.
CHANCE_PERCENT = 20.0
# Learning rates of which one is so many times the other differ in kind.
_FAR_FACTOR = 10.0
_FEW_STEPS = 50


def why_untrained(run: Row, runs: list[Row]) -> str | None:
    """Return what went wrong in a run and the likely reason, in words; None if it trained.

    Args:
        run: the run in question.
        runs: all runs of the comparison, among which plain DDP's at the same seed is evidence.
    """
    fault = _fault(run)
    return None if fault is None else f"{fault}. {_likely_reason(run, runs)}"


def _fault(run: Row) -> str | None:
    accuracy = run["final_test_accuracy_percent"]
    if run["loss_not_finite_by_step"] is not None:
        return f"the loss was not finite by step {run['loss_not_finite_by_step']}"
    if accuracy < CHANCE_PERCENT:
        return f"in the end {accuracy:.1f} % of the test images were right, which is chance"
    return None


def _likely_reason(run: Row, runs: list[Row]) -> str:
    rate, suitable = run["peak_learning_rate"], run["recipe_learning_rate"]
    named = f"the peak learning rate {rate:g}"
    if run["codec"] == BASELINE:
        of_plain = ""
    else:
        plain = [r for r in runs if r["codec"] == BASELINE and r["seed"] == run["seed"]]
        if not plain:
            of_plain = "; a run of plain DDP (none) beside it would tell more"
        elif _fault(plain[0]) is None:
            of_plain = f"; plain DDP trained: {run['codec']} bears less"
        else:
            of_plain = f"; it is not due to {run['codec']}: plain DDP did not train either"
    if rate > suitable:
        reason = f"{named} is too large, where {suitable:g} suits the data"
    elif rate < suitable / _FAR_FACTOR:
        reason = f"{named} is too small, where {suitable:g} suits the data"
    elif run["loss_not_finite_by_step"] is None and run["steps"] < _FEW_STEPS:
        reason = f"{run['steps']} steps are too few"
    else:
        reason = f"{named} is too large for {run['batch_size_per_rank']} samples per rank and step"
    return f"Likely, {reason}{of_plain}"

"""Floors: how much of the best float32 score may be lost, and the lowest score that leaves."""

# Shares at which an answer is given besides the one that was asked for.
FLOORS = [0.005, 0.01, 0.02, 0.03, 0.05]


def lowest_allowed(score: float, share: float) -> float:
    """The floor that lies a share of a score below it: a distance, so that a negative score does not raise its own."""
    return score - share * abs(score)

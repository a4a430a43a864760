"""Label smoothing (Szegedy et al. 2016, section 7)."""

from torch import Tensor


def smooth_labels(targets: Tensor, eps: float, *, num_classes: int = 2) -> Tensor:
    """``targets * (1 - eps) + eps / num_classes``.

    Args:
        targets: probabilities, of any shape.
        eps: share of the target that is spread over all classes.
        num_classes: among which a softmax chooses; each value of a sigmoid chooses between 2, which
            makes darknet's ``t (1 - eps) + eps / 2``.
    """
    return targets * (1 - eps) + eps / num_classes

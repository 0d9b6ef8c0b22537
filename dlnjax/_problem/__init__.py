"""Problems `ℓ(x) = ½⟨x, Mx⟩ − ⟨r, x⟩ + c` with weight decay: classes, minimisers, validation.

- `base.py`: the interface `AbstractProblem`, its lasso and duality gap, and the checks that
  every solver makes of a problem.
- `design.py`: the two classes, `LeastSquares(X, y)` and `Quadratic(M, r)`.
- `generalized.py`, `losses.py`: those with another loss of the rows, such as `Logistic`.
- `quadratic_loss.py`: tests whether a user's `loss` is the quadratic of its `M` and `r`.
- `semidefinite.py`: tests whether `½⟨x, Mx⟩ − ⟨r, x⟩` is convex and bounded below.
- `solution_space.py`: the affine space of the minimisers of the loss.
"""

from .base import (
    AbstractProblem as AbstractProblem,
    check_loss as check_loss,
    check_problem as check_problem,
    check_quadratic as check_quadratic,
    default_events as default_events,
    harmless as harmless,
    is_quadratic as is_quadratic,
    nan_unless_valid as nan_unless_valid,
    validity as validity,
    without_decay as without_decay,
)
from .design import LeastSquares as LeastSquares, Quadratic as Quadratic
from .generalized import (
    Exponential as Exponential,
    GeneralizedLinear as GeneralizedLinear,
    Huber as Huber,
    Logistic as Logistic,
    Poisson as Poisson,
    check_labels as check_labels,
    glm_of as glm_of,
)
from .losses import (
    AbstractLoss as AbstractLoss,
    ExponentialLoss as ExponentialLoss,
    HuberLoss as HuberLoss,
    LogisticLoss as LogisticLoss,
    PoissonLoss as PoissonLoss,
)

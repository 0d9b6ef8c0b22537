"""Problems `ℓ(x) = ½⟨x, Mx⟩ − ⟨r, x⟩ + c` with weight decay: classes, minimisers, validation.

- `base.py`: the interface `AbstractProblem`, its lasso and duality gap.
- `check_loss.py`: `check_loss`, a test for losses of users.
- `checks.py`, `validity.py`: what every solver asks of a known problem, and of a traced one.
- `design.py`: `LeastSquares(X, y)` and `Quadratic(M, r)`.
- `generalized.py`, `losses.py`: those with another loss of the rows, such as `Logistic`.
- `matrix_free.py`: `MatrixFree(apply, adjoint, y)`, of which only products are known.
- `quadratic_loss.py`: tests whether a user's `loss` is the quadratic of its `M` and `r`.
- `semidefinite.py`: tests whether `½⟨x, Mx⟩ − ⟨r, x⟩` is convex and bounded below.
- `schedule.py`: a weight decay that changes with time.
- `solution_space.py`: the affine space of the minimisers of the loss.
- `walsh.py`: monomials of Boolean points, as the columns of a design.
"""

from .base import AbstractProblem as AbstractProblem, default_events as default_events
from .checks import (
    check_known_loss as check_known_loss,
    check_problem as check_problem,
    check_quadratic as check_quadratic,
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
from .matrix_free import MatrixFree as MatrixFree
from .quadratic_loss import is_quadratic as is_quadratic
from .schedule import (
    Schedule as Schedule,
    is_decay as is_decay,
    largest_decay as largest_decay,
    least_decay as least_decay,
    may_decay as may_decay,
    total_decay as total_decay,
)
from .validity import (
    harmless as harmless,
    harmless_data as harmless_data,
    nan_unless_valid as nan_unless_valid,
    validity as validity,
    with_decay as with_decay,
    without_decay as without_decay,
)
from .walsh import degree_profile as degree_profile, walsh as walsh

from ._lasso._homotopy import lasso_path as lasso_path
from ._network import UV as UV, USquared as USquared
from ._path import PiecewiseLinearPath as PiecewiseLinearPath
from ._problem import LeastSquares as LeastSquares, Quadratic as Quadratic
from ._solution import RESULTS as RESULTS
from ._flow._formulation import DualForm as DualForm, WeightForm as WeightForm
from ._flow._gradient_flow import Flow as Flow, gradient_flow as gradient_flow
from ._flow._rosenbrock import Rodas5P as Rodas5P

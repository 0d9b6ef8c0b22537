from ._lasso._homotopy import lasso_path as lasso_path
from ._network import UV as UV, USquared as USquared
from ._path import PiecewiseLinearPath as PiecewiseLinearPath
from ._problem import LeastSquares as LeastSquares, Quadratic as Quadratic
from ._solution import RESULTS as RESULTS

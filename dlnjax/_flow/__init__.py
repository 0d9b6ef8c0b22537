"""Gradient flow at finite `ε`: `gradient_flow` and `crossing_times`, the arguments that both check
(`run.py`), formulations and their vector fields (`formulations.py`, `terms/`), how a link function
is evaluated (`link.py`), the loop (`driver.py`), and solvers (`rodas5p.py`, `kvaerno5.py`, …).
"""

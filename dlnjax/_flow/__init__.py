"""Gradient flow at finite `ε`: `gradient_flow` and `crossing_times`, what both begin with
(`setup.py`), how a link function is evaluated (`link.py`), the solvers (`rodas5p.py`,
`kvaerno5.py`), and the vector fields (`terms/`).
"""

"""Training in discrete steps: `train`, its loop, the flow that its noise stands for
(`effective.py`), and the step sizes that are stable along a flow (`sharpness.py`).
"""

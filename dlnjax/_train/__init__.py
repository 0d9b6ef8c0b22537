"""Training in discrete steps: `train`, its loop, and the flow that its noise stands for
(`effective.py`).
"""

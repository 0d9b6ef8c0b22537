"""The limit `ε → 0` of gradient flow, `limit_flow`: its process of jumps (`process.py`), the path
made of what that leaves (`record.py`), and the same for other losses (`generalized.py`).
"""

"""The limit `ε → 0` of gradient flow: `limit_flow`, and its process of jumps (`process.py`)."""

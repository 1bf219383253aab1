"""The mathematics: moments and weights in, solutions out; NumPy and SciPy only, no onnx, no files.

Reading order: ridge (the one system all share), select and obs (which MLP channels stay), mlp, qk, refit, vo.
"""

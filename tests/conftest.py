"""Shapes in signatures are checked while the tests run: jaxtyping's hook rewrites the rooms of the mathematics.

One thread for NumPy's and SciPy's products: matrices are small here, and every worker of pytest has threads enough.
"""

from __future__ import annotations

import scipy.linalg  # loads the BLAS of both, or the limit would not reach them
from jaxtyping import install_import_hook
from threadpoolctl import threadpool_limits

install_import_hook([f"corp_onnx.{room}" for room in ("solve", "moments")], "beartype.beartype")

assert scipy.linalg
threadpool_limits(1, user_api="blas")

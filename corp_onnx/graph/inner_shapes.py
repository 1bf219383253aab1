"""What a file says of its inner tensors (value_info), written anew when its graph has changed."""

from __future__ import annotations

from contextlib import suppress

import onnx

from corp_onnx.graph.proto import INFERENCE_ERRORS, skeleton


def refresh_value_info(proto: onnx.ModelProto) -> None:
    """Types and shapes of inner tensors as onnx infers them from what the graph is now; none where it can not.

    Sizes that only have a name are left open: a runtime that is told how large a batch is, as tract, takes a name that
    stays inside the graph for a contradiction.
    """
    del proto.graph.value_info[:]
    with suppress(*INFERENCE_ERRORS):  # they are a courtesy to readers, and a file goes without as well
        inferred = onnx.shape_inference.infer_shapes(skeleton(proto)).graph.value_info
        for dim in (dim for value in inferred for dim in value.type.tensor_type.shape.dim):
            dim.ClearField("dim_param")
        proto.graph.value_info.extend(inferred)

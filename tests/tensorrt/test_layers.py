"""What TensorRT writes of an engine's layers, from a real log with fewer and shorter lines."""

from __future__ import annotations

import pytest

from corp_onnx.tensorrt.layers import EngineLayer, is_layer_list, parse_layers

HALF = "Dimensions: [-1,65,24], StrideOrder: [1,2,0], Datatype: Half, Format: (Arbitrary) stride order = [1,2,0]"
FLOAT = "Dimensions: [-1,72], StrideOrder: [1,0], Datatype: Float, Format: (Linear) Row major linear format"
INT8 = "Dimensions: [1,72], StrideOrder: [1,0], Datatype: Int8, Format: (Linear) Row major linear format"

LOG = f"""\
Layers:
Name: __mye23467_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , Metadata:\x20
Name: __myl_CastReplConc_myl0_1, LayerType: kgen, Inputs: [ {{ Name: input, {FLOAT} }}], Constants: [], \
Outputs: [ {{ Name: conv.1, {HALF} }}], TacticName: __myl_CastReplConc_0x1265, StreamId: 0, \
Metadata: [ONNX Layer: graph_input_cast0]\x1f[ONNX Layer: /patch_embed/proj/Conv]
Name: _gemm_mha_v2_myl0_8, LayerType: kgen, Inputs: [ {{ Name: q, {HALF} }}, {{ Name: k, {HALF} }}], Constants: [], \
Outputs: [ {{ Name: y, {HALF} }}], TacticName: _gemm_mha_v2_0x889039, StreamId: 0, \
Metadata: [ONNX Layer: /attn/MatMul_1]\x1f[ONNX Layer: /attn/Softmax]\x1f[ONNX Layer: /attn/MatMul]
Name: __myl_FcAddAdd_myl0_9, LayerType: runtime_fusion, Inputs: [ {{ Name: y, {HALF} }}], Constants: [ {{ Name: w, \
{FLOAT} }}, {{ Name: b, {INT8} }}], Outputs: [ {{ Name: z, {HALF} }}], TacticName: , StreamId: 0, \
Metadata: [ONNX Layer: /attn/proj[0]/MatMul]
Name: __myl_Softmax_myl0_10, LayerType: kgen, Inputs: [ {{ Name: l, {FLOAT} }}], Constants: [], \
Outputs: [ {{ Name: p, {FLOAT} }}], TacticName: t, StreamId: 0, Metadata:\x20

I/O Tensors:
 Name: input, IOMode: Input, DataType: Float, Dimensions: [-1,3,32,32], Location: Device
"""


def test_every_layer_of_a_log() -> None:
    found = parse_layers(LOG)
    assert [(layer.name, layer.kind) for layer in found] == [
        ("__mye23467_0_myl0_0", "shape_call"),
        ("__myl_CastReplConc_myl0_1", "kgen"),
        ("_gemm_mha_v2_myl0_8", "kgen"),
        ("__myl_FcAddAdd_myl0_9", "runtime_fusion"),
        ("__myl_Softmax_myl0_10", "kgen"),
    ]
    assert found[1].types == ("Float", "Half")
    assert found[1].origins == ("graph_input_cast0", "/patch_embed/proj/Conv")
    assert found[2].tactic == "_gemm_mha_v2_0x889039"
    assert found[2].origins == ("/attn/MatMul_1", "/attn/Softmax", "/attn/MatMul")
    assert found[3].types == ("Half",)  # and not those of its constants
    assert found[3].origins == ("/attn/proj[0]/MatMul",)
    assert [layer.is_kernel for layer in found] == [False, True, True, True, True]
    assert [layer.is_padding for layer in found] == [False, True, False, False, False]
    assert [layer.is_fused_attention for layer in found] == [False, False, True, False, False]
    assert [layer.is_product for layer in found] == [False, False, False, True, False]


def test_lines_without_constants_and_with_another_separator() -> None:
    """As TensorRT 10 documents what its inspector writes."""
    text = (
        "Layers:\nName: fc1 + relu, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [1,8], Format/Datatype: Half }], "
        "Outputs: [ { Name: y, Location: Device, Dimensions: [1,8], Format/Datatype: Half }], "
        "TacticName: sm80_xmma, StreamId: 0, Metadata: [ONNX Layer: fc1]\x1e[ONNX Layer: relu]\n\nBindings:\nx\ny"
    )
    assert parse_layers(text) == (EngineLayer("fc1 + relu", "gemm", "sm80_xmma", ("Half",), ("fc1", "relu")),)


@pytest.mark.parametrize(
    "text", ["", "nothing\n", "Layers:", "Layers:\n\nName: a, LayerType: b, ", "Name: a, LayerType: b"]
)
def test_no_list_no_layers(text: str) -> None:
    assert parse_layers(text) == ()


@pytest.mark.parametrize(
    "line", ["Name: a", "Name: a, LayerType: b", "Name: a, LayerType: b, Constants: [ {", "Name: "]
)
def test_lines_that_were_cut(line: str) -> None:
    (layer,) = parse_layers(f"Layers:\n{line}")
    assert layer.origins == layer.types == ()


def test_which_message_is_the_list() -> None:
    assert is_layer_list(LOG)
    assert is_layer_list("Engine Layer Information:\nLayer")
    assert not is_layer_list("[MemUsageChange] Layers: 3")

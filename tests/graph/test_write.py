"""Models become files; weights that do not fit go beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from samples import listing

from corp_onnx.errors import OutputError
from corp_onnx.graph import model
from corp_onnx.graph.write import write_model


def make_model(n: int = 600) -> onnx.ModelProto:
    """x @ w + b, w of n x 4."""
    rng = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(rng.standard_normal((n, 4)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal(4).astype(np.float32), "b"),
    ]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", n])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class TestWriting:
    def test_weights_inside_stay_inside(self, tmp_path: Path) -> None:
        write_model(make_model(), tmp_path / "m.onnx", tmp_path)
        assert listing(tmp_path) == ["m.onnx"]
        assert onnx.load(tmp_path / "m.onnx") == make_model()

    def test_weights_beside_go_into_one_file_of_the_new_name(self, tmp_path: Path) -> None:
        (tmp_path / "old").mkdir()
        (tmp_path / "new").mkdir()
        onnx.save_model(make_model(), tmp_path / "old" / "m.onnx", save_as_external_data=True, location="w.bin")
        proto = onnx.load(tmp_path / "old" / "m.onnx", load_external_data=False)
        write_model(proto, tmp_path / "new" / "n.onnx", tmp_path / "old")
        assert listing(tmp_path / "new") == ["n.onnx", "n.onnx.data"]
        weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "new" / "n.onnx").graph.initializer}
        for tensor in make_model().graph.initializer:
            np.testing.assert_array_equal(weights[tensor.name], numpy_helper.to_array(tensor))

    def test_model_that_outgrows_protobuf(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model, "MAX_PROTO_BYTES", 1000)
        write_model(make_model(), tmp_path / "m.onnx", tmp_path)
        assert listing(tmp_path) == ["m.onnx", "m.onnx.data"]
        assert len({file.stat().st_mode for file in tmp_path.iterdir()}) == 1
        onnx.checker.check_model(tmp_path / "m.onnx")

    def test_full_disk(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"could not be written to .*No space left on device"):
            write_model(make_model(), Path("/dev/full"), tmp_path)

    def test_file_of_that_name_in_the_working_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """onnx looks for the name there, wherever it writes to, and refuses."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(model, "MAX_PROTO_BYTES", 1000)
        (tmp_path / "new").mkdir()
        (tmp_path / "m.onnx.data").write_text("theirs")
        for _ in range(2):  # and what an earlier run left in the same folder
            write_model(make_model(), tmp_path / "new" / "m.onnx", tmp_path)
            onnx.checker.check_model(tmp_path / "new" / "m.onnx")
        assert (tmp_path / "m.onnx.data").read_text() == "theirs"
        stored = (tmp_path / "new" / "m.onnx.data").read_bytes()
        assert stored == make_model().graph.initializer[0].raw_data

    def test_same_bytes_as_onnx_writes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(model, "MAX_PROTO_BYTES", 1000)
        for name in ("onnx", "ours"):
            (tmp_path / name).mkdir()
        onnx.save_model(
            make_model(), tmp_path / "onnx" / "m.onnx", save_as_external_data=True, location="m.onnx.data",
            size_threshold=1024,
        )  # fmt: skip
        write_model(make_model(), tmp_path / "ours" / "m.onnx", tmp_path)
        for name in ("m.onnx", "m.onnx.data"):
            assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "onnx" / name).read_bytes()

    def test_small_weights_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model, "MAX_PROTO_BYTES", 100)
        write_model(make_model(8), tmp_path / "m.onnx", tmp_path)
        assert listing(tmp_path) == ["m.onnx"]

"""What the outputs of a model are, and how far two models' outputs are apart: NumPy and SciPy only."""

from corp_onnx.metrics.judgement import Judgement, open_tally
from corp_onnx.metrics.tally import Tally
from corp_onnx.metrics.task import OutputTask, Task, find_task

__all__ = ["Judgement", "OutputTask", "Tally", "Task", "find_task", "open_tally"]

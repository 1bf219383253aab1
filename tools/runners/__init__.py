"""One runtime a file, each run in an environment of its own by `child.py`, which imports nothing of corp_onnx.

Every file has one function

    load(path, shape, folder) -> answer

`path` is an ONNX file, `shape` the input with its batch, for example (8, 3, 224, 224), `folder` an empty one for what a
runtime writes on the way; `answer` takes an array of that shape in float32 and gives the first output in float32. What
a runtime does not take it refuses with an exception. JavaScript has its own `child.mjs` of the same commands.
"""

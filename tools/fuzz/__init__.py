"""An attack on corp-onnx: spoilt models, odd inputs, bad places, too little memory, kills; `tools/run_fuzz.py` runs it.

values.py      Case, Command, Run, Finding: what passes between the others
draw.py        what every spoiler draws with
nodes.py, face.py, tensors.py, names.py, functions.py, external.py, raw.py
               ways to spoil an ONNX file
models.py      all of them by name, and a spoilt file from (name, fixture, seed)
images.py, arrays.py, texts.py, places.py
               scenes: a folder with something odd in it, and the command that meets it
verbs.py       the command lines, and what each may write
runner.py      one command in a process of its own: 60 s, limited memory, what it left behind
forks.py       a process with the package imported that forks for each of them
kills.py       a verb stopped at a moment of chance, and the run after it
verdict.py     done, refused or fault
oracle.py      plain ONNX Runtime on two files (a program); whole.py keeps a rewrite at full width for it
known.py       faults that are being mended
plan.py        the cases, in a short fixed list and without end
journal.py     faults in out/fuzz/, each with the command that repeats it
"""

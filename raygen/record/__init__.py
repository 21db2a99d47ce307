"""The record of a run: what was asked, every trial's progress, the best models. Nothing else knows its keys.

`documents.py` says what is written, `layout.py` under which keys, `reading.py` how it is read and `view.py` what it
comes to. `attempt.py` and `trial.py` write, each through one thread (`courier.py`), and look for what others ask of
them in another (`lookout.py`). `ranking.py` and `summary.py` are pure functions over what was read.
"""

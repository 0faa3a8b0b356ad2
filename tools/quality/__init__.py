"""Measuring what methods keep of a task's quality: cells that are computed once, and the pages made of them.

`bench_quality.py` and `ablation.py` are the commands; see docs/results/.
"""

"""The benchmark: every optimizer's step, compared with other implementations in one process, after a check of each."""

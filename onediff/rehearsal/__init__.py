"""Runs one rank at the real shapes and world size of a run, without weights, a GPU or the other ranks.

whole.py        the rehearsal of a run: a rank, compared with its peers
forks.py        the processes of a rehearsal, forked from one that has done the imports
rank.py         one rank in its own process: runs the training code phase by phase
role.py         the task and the result of a process
stage.py        process groups without other ranks, and tensors without memory
shallow.py      the same model with fewer layers
collectives.py  records a rank's collectives in order; also works in real runs
held.py         tracks allocated bytes
batches.py      the largest and the smallest possible micro-batch
compare.py      finds where ranks would wait for each other forever
report.py       prints a rehearsal
"""

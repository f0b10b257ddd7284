"""One rank of a run at its real shapes and world size, without weights, without a GPU, and without the other ranks.

whole.py        the rehearsal of a run: a rank and two of its peers, compared
rank.py         one rank in a process of its own: the training code itself, phase by phase
stage.py        process groups without other ranks, tensors without memory
collectives.py  what a rank sends, in order; works in real runs too
held.py         bytes that are alive, and what they are for
batches.py      the largest micro-batch that may come, and the smallest
compare.py      where ranks would wait for each other forever
report.py       in words
"""

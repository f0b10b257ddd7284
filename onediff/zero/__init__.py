"""DeepSpeed ZeRO: the only package that reaches into DeepSpeed.

`engine.ZeroEngine` is what training sees. It offers what `protocol.ShardedEngine` lists. Another way to share a model out
over ranks, such as torch's FSDP2, replaces this package by one that offers the same, and by its own `parameters` and
`process`.

    protocol.py       what training asks of any engine; one rank's part of a parameter
    engine.py         the same on DeepSpeed
    settings.py       what DeepSpeed is configured with
    parameters.py     sharded parameters: full shape, and this rank's range
    process.py        joining and leaving DeepSpeed's communication
    state.py          weights and optimizer state of every ZeRO stage, in one form
    swapped.py        optimizer state in files, brought in for a checkpoint
    nvme.py           the folder of those files, and what the machine must have for them
    gradient_norm.py  one gradient norm at every stage; a step is skipped where it is not finite
    release.py        freeing an engine
"""

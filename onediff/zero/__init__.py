"""DeepSpeed ZeRO: the only package that reaches into DeepSpeed.

Training sees only `engine.ZeroEngine`, which implements `protocol.ShardedEngine`. To shard a model in another way, such as
torch's FSDP2, replace this package by one with another implementation of the protocol, and its own `parameters` and
`process`.

    protocol.py       what training needs from any engine; one rank's part of a parameter
    engine.py         the protocol on DeepSpeed
    settings.py       DeepSpeed's configuration
    parameters.py     sharded parameters: full shape, and this rank's range
    process.py        joining and leaving DeepSpeed's communication
    state.py          weights and optimizer state of every ZeRO stage, in one form
    swapped.py        optimizer state in files, loaded for a checkpoint
    nvme.py           the folder of those files, and what the machine needs for them
    gradient_norm.py  one gradient norm at every stage; a step is skipped if it is not finite
    release.py        freeing an engine
"""

"""DeepSpeed ZeRO. No other package depends on DeepSpeed's internals.

Training uses only `engine.ZeroEngine`, which implements `protocol.ShardedEngine`. To shard models in another way, such as
with torch's FSDP2, replace this package by one with another implementation of the protocol and its own `parameters` and
`process`.

    protocol.py       what training needs from any engine; one rank's part of a parameter
    engine.py         the protocol on DeepSpeed
    settings.py       DeepSpeed's configuration
    parameters.py     sharded parameters: full shape, and this rank's range
    process.py        set-up and tear-down of DeepSpeed's communication
    node_copy.py      a copy of the weights on each node (hpZ)
    state.py          weights and optimizer state, in the same form at every ZeRO stage
    swapped.py        loading swapped optimizer state for a checkpoint
    nvme.py           the folder of swap files, and the machine's requirements for swapping
    gradient_norm.py  the same gradient norm at every stage; a step is skipped if it is not finite
    release.py        freeing an engine
    alone.py          DeepSpeed on a single rank of a simulated world, for rehearsals
"""

"""What starting a rank imports."""

import subprocess
import sys

HEAVY = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy", "scipy", "megatron", "mlflow", "peft")


def test_a_rank_starts_and_steps_without_the_compiler_and_what_only_others_need():
    code = f"""
import sys, torch
from onediff.training.run import train
from onediff.training.adamw import AdamW
weight = torch.nn.Parameter(torch.ones(3))
optimizer = AdamW([weight], lr=0.1)
weight.square().sum().backward()
optimizer.step()
optimizer.zero_grad()
print([name for name in {HEAVY} if name in sys.modules])
twice = torch.compile(lambda x: 2 * x, backend="eager")
print(twice(torch.ones(2)).tolist(), "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["[]", "[2.0, 2.0] True"]

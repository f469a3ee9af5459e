"""What is said to fit, in a process that may take no more."""

import json
import subprocess
import sys

import pytest
from tiny import memory_heavy

CODE = """
import json, resource, sys
import torch, xattn
from xattn.errors import CapacityError
from xattn.ledger import fit

torch.set_num_threads(1)
model = xattn.load(sys.argv[1], offline=True)
model.generate([5, 6, 7], max_new_tokens=2)
budget, length, new = int(sys.argv[2]), 500, 96
lines = open("/proc/self/status").read().splitlines()
held = 1024 * int(next(line for line in lines if line.startswith("VmData")).split()[1])
most = held + budget + (48 << 20)  # what the allocator and threads need besides
resource.setrlimit(resource.RLIMIT_DATA, (most, most))
weights = model.ledger().total_bytes
[said, *_] = fit(model.spec, {"document": length}, weights + budget, new_tokens=new)

def submitted(count):
    settings = dict(max_new_tokens=new, min_new_tokens=new, wait=False)
    sources = [[3 + (n + k) % 500 for k in range(length)] for n in range(count)]
    return [engine.submit(source, **settings) for source in sources]

with xattn.Engine(model, capacity_bytes=budget, max_rows=4096) as engine:
    lengths = [len(ticket.result().tokens) for ticket in submitted(said.batch)]
    try:
        submitted(int(said.batch * 1.15) + 1)
        refusal = ""
    except CapacityError as error:
        refusal = str(error)
print(json.dumps({"fits": said.batch, "lengths": lengths, "refusal": refusal}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts anonymous pages on Linux")
def test_the_largest_batch_runs_within_its_bytes_and_a_larger_one_is_refused(tmp_path):
    memory_heavy(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path), str(384 << 20)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Keys and values of 500 tokens are 24.6 MB, and more than half a gigabyte is not there.
    assert 8 <= found["fits"] <= 16
    assert found["lengths"] == [96] * found["fits"]
    assert f"capacity_bytes is {384 << 20}" in found["refusal"]

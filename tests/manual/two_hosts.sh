#!/usr/bin/env bash
# Train on two "hosts": network namespaces with an address each, joined by a virtual cable. Then kill a worker of
# the second host, which torchrun restarts, and look whether both runs end with the weights of a run on one host.
# Needs root (ip netns) and iproute2. Run from the root of the repository: bash tests/manual/two_hosts.sh
set -euo pipefail

folder=$(mktemp -d)
first=10.77.0.1 second=10.77.0.2
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD

clean_up() {
    ip netns pids atss-a 2>/dev/null | xargs -r kill 2>/dev/null || true
    ip netns pids atss-b 2>/dev/null | xargs -r kill 2>/dev/null || true
    ip netns delete atss-a 2>/dev/null || true
    ip netns delete atss-b 2>/dev/null || true
    rm -rf "$folder"
}
trap clean_up EXIT

ip netns add atss-a
ip netns add atss-b
ip link add atss-cable-a netns atss-a type veth peer name atss-cable-b netns atss-b
for host in a b; do
    address=$first
    if [ $host = b ]; then address=$second; fi
    ip -n atss-$host link set lo up
    ip -n atss-$host address add $address/24 dev atss-cable-$host
    ip -n atss-$host link set atss-cable-$host up
done

python - "$folder" <<'PYTHON'
import sys
from pathlib import Path

from atss_core.data import write_shapes

write_shapes(Path(sys.argv[1]) / "shapes", num_train=16, num_val=8, image_sizes=((128, 128),), progress=False)
PYTHON

# The overrides of the tests' small model.
mapfile -t opts < <(python -c "
from tests.conftest import TINY
from tests.engine.helpers import ALONE
print('\n'.join([*TINY, *ALONE, 'SOLVER.MAX_ITER', '60', 'SOLVER.CHECKPOINT_PERIOD', '10']))")

train() { # train <output> <launcher words...>
    local output=$1
    shift
    "$@" tools/train_net.py --config-file configs/quick/atss_R_18_shapes.yaml "${opts[@]}" \
        DATASETS.DATA_DIR "$folder" OUTPUT_DIR "$output"
}

# Namespaces share the name of the machine, so each is told its address and which of them leads.
on_host() { # on_host <a|b> <output> <port>: one process of a job of two hosts
    train "$2" env GLOO_SOCKET_IFNAME=atss-cable-"$1" ip netns exec atss-"$1" \
        python -m torch.distributed.run --nnodes 2 --nproc_per_node 1 --max-restarts 1 \
        --rdzv_backend c10d --rdzv_id atss --rdzv_endpoint "$first:$3" \
        --rdzv_conf is_host="$([ "$1" = a ] && echo true || echo false)" \
        --local-addr "$([ "$1" = a ] && echo $first || echo $second)"
}

echo "one host, two processes"
train "$folder/one" python -m torch.distributed.run --standalone --nproc_per_node 2 > "$folder/one.txt" 2>&1

echo "two hosts"
on_host b "$folder/two" 29400 > "$folder/two-b.txt" 2>&1 &
on_host a "$folder/two" 29400 > "$folder/two-a.txt" 2>&1
wait

echo "two hosts, one of which loses its worker"
on_host b "$folder/killed" 29401 > "$folder/killed-b.txt" 2>&1 &
on_host a "$folder/killed" 29401 > "$folder/killed-a.txt" 2>&1 &
until [ -e "$folder/killed/model_0000010.pth" ]; do sleep 0.02; done
for pid in $(ip netns pids atss-b); do
    if tr '\0' ' ' < "/proc/$pid/cmdline" | grep -q "python.*-u tools/train_net.py\|python tools/train_net.py"; then
        kill -9 "$pid"
        echo "killed process $pid of the second host"
    fi
done
wait
grep -h "Resuming from" "$folder"/killed-*.txt

python - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import torch

from atss_core.checkpoint.checkpointer import read_checkpoint

folder = Path(sys.argv[1])
one, two, killed = (read_checkpoint(folder / n / "model_final.pth")["model"] for n in ("one", "two", "killed"))
assert not (folder / "one" / "model_0000060.pth").exists()
for name, other in (("two hosts", two), ("two hosts, one worker killed", killed)):
    worst = max((one[key].double() - other[key].double()).abs().max().item() for key in one)
    same = all(torch.equal(one[key], other[key]) for key in one)
    print(f"{name}: largest difference of a weight to one host {worst:.2g}; {'equal' if same else 'NOT equal'}")
    assert same
for name in ("one", "two", "killed"):
    tested = torch.load(folder / name / "inference/shapes_val/predictions.pth", weights_only=True)
    print(f"{name}: {len(tested)} images tested")
    assert len(tested) == 8
PYTHON

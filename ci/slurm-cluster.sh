#!/usr/bin/env bash
# A throw-away Slurm cluster on this machine: virtual nodes node1, node2, ... with eight fake GPUs each, a partition
# `gpu` and a partition `urgent` that preempts it.
#
# Usage: ci/slurm-cluster.sh BASE [NODES]          (as root; stays in the foreground)
#
#   BASE    a new folder for configuration, keys, state and logs; clients need SLURM_CONF=BASE/etc/slurm.conf
#   NODES   how many nodes (default 2)
#
# It prints "ready" and then reads commands from standard input:
#   stop NODE     kill the daemon of a node, and what runs there, as a power cut would
#   start NODE    start it again
#   quit          (or end of input) stop everything
#
# Everything runs in a PID namespace of its own, whose first process dies with the one that started it: however this
# script, its caller or the whole test run ends, the kernel takes every daemon and every job along.
# All daemons listen on the loopback interface only.
set -euo pipefail

if [ "${GROWTH_SLURM_INSIDE:-}" != 1 ]; then
  base=${1:?usage: ci/slurm-cluster.sh BASE [NODES]}
  mkdir -p "$base"
  GROWTH_SLURM_INSIDE=1 exec setpriv --pdeathsig KILL \
    unshare --pid --fork --kill-child --mount --mount-proc --uts -- "$0" "$(cd "$base" && pwd)" "${2:-2}"
fi

BASE=$1 NODES=$2
GPUS=${SLURM_FAKE_GPUS:-8} CPUS=${SLURM_FAKE_CPUS:-16} MEMORY_MB=${SLURM_FAKE_MEMORY_MB:-200000}
export SLURM_CONF=$BASE/etc/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

# N free TCP ports in a row on the loopback interface: the first for slurmctld, one for each slurmd.
free_ports() {
  python3 - "$1" <<'PYTHON'
import random, socket, sys

count = int(sys.argv[1])
while True:
    first = random.randrange(20000, 30000)
    held = []
    try:
        for port in range(first, first + count):
            held.append(socket.socket())
            held[-1].bind(("", port))
    except OSError:
        continue
    finally:
        for one in held:
            one.close()
    print(first)
    break
PYTHON
}

write_configuration() {
  local port
  port=$(free_ports $((NODES + 1)))
  mkdir -p "$BASE"/{etc,state,log,run,munge,dev}
  chmod 755 "$BASE"
  for ((i = 0; i < GPUS; i++)); do ln -sfn /dev/null "$BASE/dev/nvidia$i"; done
  echo "Name=gpu Type=h100 File=$BASE/dev/nvidia[0-$((GPUS - 1))]" >"$BASE/etc/gres.conf"
  # What each node sees as /etc/hosts, so that the names that Slurm prints resolve.  All are 127.0.0.1, because that is
  # the address that a step's daemon answers srun at, and srun listens where its own host name points to.
  echo "127.0.0.1 localhost $(printf 'node%d ' $(seq "$NODES"))" >"$BASE/etc/hosts"
  # cred_expire is short so that a requeue takes 6 s; the other timeouts are long, because a busy machine is no dead node.
  cat >"$SLURM_CONF" <<CONF
ClusterName=growthtest
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$BASE/munge/munge.sock,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$BASE/state
SlurmdSpoolDir=$BASE/spool.%n
SlurmctldPidFile=$BASE/run/slurmctld.pid
SlurmdPidFile=$BASE/run/slurmd.%n.pid
SlurmctldLogFile=$BASE/log/slurmctld.log
SlurmdLogFile=$BASE/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$BASE/log/jobcomp.txt
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=10000,batch_sched_delay=0,bf_interval=1
ReturnToService=2
SlurmdParameters=config_overrides
MailProg=/bin/true
PriorityType=priority/basic
InactiveLimit=0
KillWait=2
MinJobAge=86400
SlurmctldTimeout=60
SlurmdTimeout=60
BatchStartTimeout=60
MessageTimeout=30
CompleteWait=0
OverTimeLimit=0
JobRequeue=1
PropagateResourceLimits=NONE
GresTypes=gpu
NodeName=node[1-$NODES] NodeHostname=localhost Port=[$((port + 1))-$((port + NODES))] CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEMORY_MB Gres=gpu:h100:$GPUS State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
CONF
}

start_munge() {
  [ -e "$BASE/munge/munge.key" ] || mungekey --create --keyfile="$BASE/munge/munge.key"
  munged --key-file="$BASE/munge/munge.key" --socket="$BASE/munge/munge.sock" --pid-file="$BASE/run/munged.pid" \
    --log-file="$BASE/munge/munged.log" --seed-file="$BASE/munge/munged.seed" --origin=lo --num-threads=2
}

# Each node has its own host name and its own view of /etc/hosts.
start_node() {
  mkdir -p "$BASE/spool.$1"
  # shellcheck disable=SC2016  # $1 to $3 belong to the inner shell
  unshare --uts --mount bash -c 'hostname "$1" && mount --bind "$2" /etc/hosts && exec slurmd -f "$3" -N "$1"' \
    - "$1" "$BASE/etc/hosts" "$SLURM_CONF"
}

# All processes of a node are those that see its host name: the daemon, the steps' daemons, and the jobs.  Looked for until
# none is left: some die with their parents before their turn comes, others begin meanwhile.
stop_node() {
  local uts process found=yes
  uts=$(readlink "/proc/$(cat "$BASE/run/slurmd.$1.pid")/ns/uts")
  while [ "$found" = yes ]; do
    found=no
    for process in /proc/[0-9]*; do
      [ "$(readlink "$process/ns/uts" 2>/dev/null)" = "$uts" ] || continue
      found=yes
      kill -KILL "${process#/proc/}" 2>/dev/null || true
    done
  done
}

wait_for_nodes() {
  for _ in $(seq 1 200); do
    [ "$(sinfo -h -N -o '%N %T' 2>/dev/null | awk '$2 == "idle"' | sort -u | wc -l)" -ge "$NODES" ] && return
    sleep 0.1
  done
  echo "slurm-cluster: the nodes did not come up, see $BASE/log" >&2
  return 1
}

write_configuration
start_munge
slurmctld -f "$SLURM_CONF"
for ((i = 1; i <= NODES; i++)); do start_node "node$i"; done
wait_for_nodes
echo ready
while read -r command node; do
  case $command in
    start) start_node "$node" ;;
    stop) stop_node "$node" ;;
    quit) break ;;
    *) echo "slurm-cluster: unknown command $command" >&2 ;;
  esac
  echo "$command $node"
done
# Leaving ends the PID namespace, and with it every process in it.

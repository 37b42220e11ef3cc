#!/usr/bin/env bash
# A real Slurm on one machine for the tests: two CPU nodes and two GPU nodes (invented GPUs), partitions cpu and gpu.
#
#   cluster.sh up DIR      start it; state, sockets, keys and logs stay in DIR (at most 70 characters long)
#   . DIR/env.sh           let this shell's Slurm commands speak to it
#   cluster.sh restart DIR stop and start the controller, jobs going on meanwhile
#   cluster.sh down DIR    stop what `up` started, and only that
#
# Needs Debian's munge, slurmctld, slurmd, slurm-client and slurm-wlm-basic-plugins; no systemd, no /etc/slurm, no
# cgroups, no database. Everything listens on the loopback interface.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin LC_ALL=C
unset SLURM_CONF

action=${1:?up, restart or down}
[ "$action" != up ] || mkdir -p "${2:?a folder}"
D=$(cd "${2:?a folder}" && pwd -P)
export ELKFLOW_TEST_CLUSTER=$D # marks our daemons: nothing else is ever signalled
CONF=$D/etc/slurm.conf

ours() { [ -n "${1:-}" ] && { tr '\0' '\n' <"/proc/$1/environ" | grep -qxF "ELKFLOW_TEST_CLUSTER=$D"; } 2>/dev/null; }
alive() { ours "$(cat "$1" 2>/dev/null)"; }

wait_for() { # seconds command...
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    if [ $SECONDS -gt $end ]; then
      echo "timed out: $*" >&2
      tail -n 5 "$D"/log/*.log >&2
      return 1
    fi
    sleep 0.05
  done
}

stop() { # seconds pidfile...: ask all, wait, then insist
  local seconds=$1 file pid
  shift
  for file; do pid=$(cat "$file" 2>/dev/null) && ours "$pid" && kill "$pid"; done
  for file; do
    pid=$(cat "$file" 2>/dev/null) || continue
    for ((i = 0; i < seconds * 20; i++)); do ours "$pid" || break; sleep 0.05; done
    if ours "$pid"; then kill -9 "$pid"; fi
    rm -f "$file"
  done
}

free_ports() { # the first of five free ports in a row
  local first port
  for ((first = 17810; first < 18800; first += 5)); do
    for ((port = first; port < first + 5; port++)); do
      if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then continue 2; fi
    done
    echo $first
    return
  done
  echo "no free ports" >&2
  return 1
}

configure() {
  local host port user
  host=$(hostname -s) user=$(id -un) port=$(free_ports)
  mkdir -p "$D"/{etc,run,log,bin,dev,munge,secret,state/{ctld,cpu1,cpu2,gpu1,gpu2}}
  chmod 755 "$D" "$D/munge"
  chmod 700 "$D/run" "$D/secret"
  (umask 077 && head -c 128 /dev/urandom >"$D/secret/munge.key")
  # GPUs must be character devices; the number at the end becomes CUDA_VISIBLE_DEVICES
  for i in 0 1 2 3; do ln -sfn /dev/null "$D/dev/nvidia$i"; done
  cat >"$D/etc/gres.conf" <<CONF
AutoDetect=off
NodeName=gpu[1-2] Name=gpu File=$D/dev/nvidia[0-3]
CONF
  cat >"$CONF" <<CONF
ClusterName=elkflow
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits for its old credential to expire (default 120 s)
AuthInfo=socket=$D/munge/socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/slurmd-%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd-%n.log
StateSaveLocation=$D/state/ctld
SlurmdSpoolDir=$D/state/%n
MailProg=/bin/true
MpiDefault=none
# works in any container; linuxproc lost the children of requeued jobs
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
MinJobAge=600
KillWait=2
CompleteWait=0
SlurmdTimeout=20
SlurmctldTimeout=20
ReturnToService=2
JobRequeue=1
# refuse what no partition can ever run; by default it would stay pending
EnforcePartLimits=ALL
# believe the invented sizes below
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT CPUs=32 RealMemory=256000 State=UNKNOWN
NodeName=cpu1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1))
NodeName=cpu2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2))
NodeName=gpu1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 3)) Gres=gpu:4
NodeName=gpu2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 4)) Gres=gpu:4
PartitionName=cpu Nodes=cpu[1-2] Default=YES MaxTime=1-00:00:00
PartitionName=gpu Nodes=gpu[1-2] MaxTime=2-00:00:00
CONF
  # Snakemake's job steps drop SLURM_* from the environment, so the commands themselves must know their cluster
  local command real
  for command in sacct sacctmgr sbatch scancel scontrol sinfo squeue srun; do
    real=$(command -v "$command")
    printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$CONF" "$real" >"$D/bin/$command"
    chmod 755 "$D/bin/$command"
  done
  printf 'export PATH=%s:$PATH\n' "$D/bin" >"$D/env.sh"
}

start_controller() {
  SLURM_CONF=$CONF slurmctld
  wait_for 15 sh -c "$D/bin/scontrol ping | grep -q UP"
}

nodes_ready() { [ "$("$D/bin/sinfo" -h -N -o %N.%T | sort -u | grep -cE '\.(idle|mixed|allocated)$')" = 4 ]; }

up() {
  for command in munged slurmctld slurmd sbatch; do
    command -v "$command" >/dev/null || { echo "missing: $command" >&2; exit 3; }
  done
  [ ${#D} -le 70 ] || { echo "too long for a socket's path: $D" >&2; exit 3; }
  ! alive "$D/run/slurmctld.pid" || { echo "already up: $D" >&2; exit 3; }
  configure
  munged --force --num-threads=2 --socket="$D/munge/socket" --key-file="$D/secret/munge.key" \
    --pid-file="$D/run/munged.pid" --log-file="$D/log/munged.log" --seed-file="$D/secret/munge.seed"
  wait_for 5 munge -n --socket="$D/munge/socket"
  start_controller
  for node in cpu1 cpu2 gpu1 gpu2; do SLURM_CONF=$CONF slurmd -N $node; done
  wait_for 20 nodes_ready
}

down() {
  if alive "$D/run/slurmctld.pid"; then # end running jobs, so that no step is left behind
    timeout 5 "$D/bin/scancel" --quiet --user="$(id -un)" || true
    for ((i = 0; i < 100; i++)); do
      [ -n "$(timeout 5 "$D/bin/squeue" -h -t running,completing -o %i)" ] || break
      sleep 0.1
    done
  fi
  stop 5 "$D"/run/slurmd-*.pid
  stop 15 "$D/run/slurmctld.pid"
  stop 5 "$D/run/munged.pid"
  # what the jobs of a failed node left behind
  for environment in /proc/[0-9]*/environ; do
    pid=${environment//[!0-9]/}
    if ours "$pid" && [ "$pid" != $$ ] && tr '\0' '\n' <"$environment" 2>/dev/null | grep -q '^SLURM_JOB_ID='; then
      kill -9 "$pid" 2>/dev/null || true
    fi
  done
}

restart() {
  stop 15 "$D/run/slurmctld.pid"
  sleep "${3:-0}"
  start_controller
}

case $action in
up | down | restart) $action "$@" ;;
*) echo "unknown: $action" >&2; exit 2 ;;
esac

#!/usr/bin/env bash
# Starts a Slurm with two nodes on this machine (Debian's slurm-wlm, no systemd), as root: slurm.sh DIR
set -euo pipefail
dir=$(mkdir -p "$1" && cd "$1" && pwd)
host=$(hostname)
install() { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; }
command -v slurmctld >/dev/null || install || exit 77
mkdir -p /run/munge && chown munge:munge /run/munge /var/log/munge /var/lib/munge && chmod 755 /run/munge
pgrep -x munged >/dev/null || runuser -u munge -- /usr/sbin/munged
grep -q ' n1 n2$' /etc/hosts || echo "127.0.0.1 n1 n2" >>/etc/hosts # the first node's name is where the ranks meet
mkdir -p "$dir"/{state,spool.n1,spool.n2,log}
cat >"$dir/slurm.conf" <<X
ClusterName=local
SlurmctldHost=$host
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
KillWait=10
MinJobAge=3600
SlurmctldPort=6817
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,requeue_setup_env_fail
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=2 RealMemory=2000 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE
X
export SLURM_CONF="$dir/slurm.conf"
slurmctld -f "$SLURM_CONF"
for node in n1 n2; do slurmd -f "$SLURM_CONF" -N $node; done
for _ in $(seq 30); do sinfo -h -o %T | grep -qx idle && exit 0; sleep 1; done
sinfo >&2
exit 1

#!/usr/bin/env bash
# A real Slurm on one machine, for root: munged, slurmctld and four slurmd, each with a host name, an /etc/hosts and a
# /dev/shm of its own, so that MPI takes them for four machines.
#
#   slurm.sh install         installs Debian's packages that are missing
#   slurm.sh up STATE PORT   nodes n1 to n4 of 8 CPUs each, which listen on PORT+1 to PORT+4 (slurmctld: PORT); STATE is
#                            an empty folder with a short path, because it holds sockets
#   slurm.sh fail STATE NODE kills the node's daemons and all of its processes at once, as if it had lost power; Slurm takes
#                            the node for DOWN 300 s later (SlurmdTimeout)
#   slurm.sh down STATE      kills the daemons and the jobs of that cluster, and of no other
#
# Slurm's commands find the cluster by SLURM_CONF=STATE/slurm.conf.
set -euo pipefail
readonly NODES=(n1 n2 n3 n4) CPUS=8 SECONDS_TO_START=40
# A clean environment for the daemons and so for the jobs; SLURM_CONF is also what marks them as this cluster's.
daemon() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$HOME" LANG=C.UTF-8 SLURM_CONF="$state/slurm.conf" "$@"; }
slurm() { SLURM_CONF=$state/slurm.conf timeout 10 "$@"; }
die() { echo "slurm.sh: $*" >&2; exit 1; }

missing() {
    command -v munged >/dev/null || echo munge
    command -v slurmctld >/dev/null || echo slurmctld
    command -v slurmd >/dev/null || echo slurmd
    command -v srun >/dev/null || echo slurm-client
    # Slurm's PMIx plugin opens libpmix.so, which only the development package has.
    compgen -G '/usr/lib/*/pmix2/lib/libpmix.so' >/dev/null || echo libpmix-dev
}

# Times are short so that a test does not wait: with Slurm's own cred_expire a requeued job comes back after two minutes.
configuration() {
    cat <<CONF
ClusterName=lab
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmctldPidFile=$state/slurmctld.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdPidFile=$state/%n.pid
SlurmdLogFile=$state/%n.log
StateSaveLocation=$state/jobs
SlurmdSpoolDir=$state/%n
TmpFS=$state/%n/tmp
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$state/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=pmix
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
KillWait=5
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
CONF
    local number
    for number in "${!NODES[@]}"; do
        echo "NodeName=${NODES[number]} NodeAddr=127.0.0.1 Port=$((port + 1 + number)) CPUs=$CPUS CoresPerSocket=$CPUS" \
            "RealMemory=4096"
    done
}

up() {
    [ "$(id -u)" = 0 ] || die 'it needs root'
    local packages; packages=$(missing)
    [ -z "$packages" ] || die "not installed:" $packages "(slurm.sh install)"
    mkdir "$state/jobs"
    printf "$state/%s/tmp\0" "${NODES[@]}" | xargs -0 mkdir -p # one for each: PMIx's sockets are named by job alone
    configuration >"$state/slurm.conf"
    echo 'CgroupPlugin=cgroup/v1' >"$state/cgroup.conf"
    echo "127.0.0.1 localhost $(hostname -s) ${NODES[*]}" >"$state/hosts"
    (umask 077 && head -c 1024 /dev/urandom >"$state/munge.key")
    chmod 755 "$state"
    daemon munged --force --key-file="$state/munge.key" --socket="$state/munge.socket" --pid-file="$state/munged.pid" \
        --log-file="$state/munged.log" --seed-file="$state/munge.seed" 2>"$state/munged.err" || die "$(<"$state/munged.err")"
    daemon slurmctld -c
    local node
    for node in "${NODES[@]}"; do
        daemon unshare --uts --mount --propagation slave bash -ec '
            hostname "$1"
            mount --bind "$2/hosts" /etc/hosts
            mount -t tmpfs -o mode=1777 tmpfs /dev/shm
            exec slurmd -N "$1"' slurmd "$node" "$state"
    done
    until [ "$(slurm sinfo -h -N -t idle -o %N | wc -l)" = ${#NODES[@]} ]; do
        [ $SECONDS -lt $SECONDS_TO_START ] ||
            die "nodes are not idle after $SECONDS s:" "$(slurm sinfo -N -l; tail -n 15 "$state"/*.log)"
        sleep 0.2
    done
}

processes() { grep -lzxF "SLURM_CONF=$state/slurm.conf" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3; }

# Process ids of a node: its slurmd and slurmstepds, which have its log open, and their descendants.
of_node() {
    local log process; log=$(realpath "$state/$1.log")
    for process in $(pgrep -x slurmd) $(pgrep -x slurmstepd); do
        ! readlink "/proc/$process"/fd/* 2>/dev/null | grep -qxF "$log" || descendants "$process"
    done
}
descendants() {
    local child
    echo "$1"
    for child in $(pgrep -P "$1"); do descendants "$child"; done
}

fail() {
    local pids; pids=$(of_node "$1")
    [ -n "$pids" ] || die "$1: no daemon"
    kill -KILL $pids 2>/dev/null || true
}

down() {
    local signal tries
    for signal in TERM KILL; do # on TERM mpirun still removes its temporary files
        for tries in {1..20}; do
            processes | xargs -r kill -$signal 2>/dev/null || true
            sleep 0.1
            [ -n "$(processes)" ] || return 0
        done
    done
    die "still running:" $(processes)
}

command=${1:-help} state=$(realpath -m "${2:-.}") port=${3:-}
case $command in
    install)
        packages=$(missing)
        [ -n "$packages" ] || exit 0
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages >/dev/null
        ;;
    up) up ;;
    fail) fail "${3:?node}" ;;
    down) down ;;
    *)
        sed -n '2,12p' "$0"
        exit 2
        ;;
esac

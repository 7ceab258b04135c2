#!/bin/bash
# Emulated hosts on one machine, for root: network namespaces behind a bridge, each link limited to a rate.
#
#   hosts.sh up N RATE                          hosts 0 to N-1 with links of RATE (as tc writes it: 1gbit), both ways
#   hosts.sh racks RATE                         odd hosts go to a second rack, joined to the first by an uplink of RATE
#   hosts.sh mpirun N RANKS [ARGS...] PROGRAM   RANKS ranks on each of N hosts
#   hosts.sh cut HOST                           takes that host's link down; its ranks live on, alone
#   hosts.sh down                               take all of it away
#
# HOSTS (default: hpml) prefixes the names, so that two sets can stand side by side. The ranks of different hosts have
# TCP only, those of one host shared memory. This file is also mpirun's remote shell: "hosts.sh ADDRESS COMMAND...".
set -euo pipefail
me=$(realpath "$0")
prefix=${HOSTS:-hpml}
export HOSTS=$prefix
command=${1:-help}
shift || true

# Runs a command on host $1: its network, and a host name of its own, by which Open MPI tells hosts apart.
on() {
    local host=$prefix-$1
    shift
    exec ip netns exec "$host" unshare --uts sh -c 'hostname "$0" && exec "$@"' "$host" "$@"
}

# Limits what the host sends. The bucket must hold the largest packet handed to the card (64 KiB): a smaller one, or a
# second shaper in the path, takes a third of the rate. cubic: bbr probes below the rate.
link() {
    local host=$prefix-$1 address=10.77.0.1$1
    ip netns add "$host"
    ip link add eth0 netns "$host" type veth peer name "port$1" netns "$prefix-bridge"
    ip -n "$prefix-bridge" link set "port$1" master bridge up
    ip -n "$host" link set lo up
    ip -n "$host" address add "$address/24" dev eth0
    ip -n "$host" link set eth0 up
    ip -n "$host" route replace 10.77.0.0/24 dev eth0 src "$address" congctl cubic
    ip netns exec "$host" tc qdisc replace dev eth0 root tbf rate "$2" burst 256kb latency 50ms
}

down() {
    local name
    for name in $(ip netns list | awk -v prefix="$prefix-" 'index($1, prefix) == 1 { print $1 }'); do
        ip netns pids "$name" | xargs -r kill -9 # a daemon that was cut off waits for a quarter of an hour
        ip netns delete "$name" # its links go with it
    done
}

case $command in
    up)
        down
        ip netns add "$prefix-bridge"
        ip -n "$prefix-bridge" link add bridge type bridge
        ip -n "$prefix-bridge" link set bridge up
        for host in $(seq 0 $(($1 - 1))); do link "$host" "$2"; done
        ;;
    racks)
        ip -n "$prefix-bridge" link add bridge1 type bridge
        ip -n "$prefix-bridge" link set bridge1 up
        ip -n "$prefix-bridge" link add up0 type veth peer name up1
        ip -n "$prefix-bridge" link set up0 master bridge up
        ip -n "$prefix-bridge" link set up1 master bridge1 up
        for port in $(ip -n "$prefix-bridge" -o link show | grep -o 'port[0-9]*[13579]@' | tr -d @); do
            ip -n "$prefix-bridge" link set "$port" master bridge1
        done
        for end in up0 up1; do
            ip netns exec "$prefix-bridge" tc qdisc replace dev "$end" root tbf rate "$1" burst 256kb latency 100ms
        done
        ;;
    mpirun)
        hosts=$1 ranks=$2
        shift 2
        list=$(for host in $(seq 0 $((hosts - 1))); do printf '10.77.0.1%d:%d,' "$host" "$ranks"; done)
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
        # Open MPI does not see that the hosts share cores: without yielding, every rank would spin against the others.
        on 0 mpirun --host "${list%,}" -n $((hosts * ranks)) --oversubscribe --bind-to none \
            --mca plm_rsh_agent "$me" --mca plm_rsh_no_tree_spawn 1 --mca pml ob1 --mca btl self,vader,tcp \
            --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0 --mca mpi_yield_when_idle 1 \
            -x HOSTS "$@"
        ;;
    cut) ip -n "$prefix-bridge" link set "port$1" down ;;
    down) down ;;
    10.77.0.1*) on "${command#10.77.0.1}" sh -c "$*" ;;
    *)
        sed -n '2,11p' "$me"
        exit 2
        ;;
esac

# A training that outlives nodes of its job, sourced after env.sh. Needs `#SBATCH --no-kill`, or Slurm ends the job with a node.

silence=${HPML_SILENCE:-30} # seconds without a sign of life after which a node is asked, and given 15 s to answer

# Runs `hpml train` with these arguments (--resume auto and --out FILE among them) on every task of the job. If a rank or a node
# is lost, it starts again in the same allocation, on the nodes that answer, with the global batch that the training has.
# Returns the status of the last start; it ends when that is 0, 75, or what a restart would meet again, after three restarts
# that came no further, or after HPML_RESTARTS.
elastic() {
    local status out='' word last='' restarts=0 idle=0 from next lost job_ranks ranks used most=${HPML_RESTARTS:-100}
    local -a nodes left
    local -A tasks
    for word in "$@"; do
        [ "$last" != --out ] || out=$word
        last=$word
    done
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    read_tasks
    job_ranks=$(ranks_of "${nodes[@]}")
    from=$(saved_step "$out")
    silent=$(mktemp)
    while
        status=0
        : >"$silent"
        [ ${#nodes[@]} = 1 ] || beside=watch_nodes
        launch "$@" || status=$?
        beside=
        case $status in 0 | 2 | 75 | 101) false ;; *) [ "$terminated" = no ] ;; esac
    do
        end_steps
        # shellcheck disable=SC2046 # names of nodes
        read -ra left <<<"$(that_answer $(except "$(<"$silent")" "${nodes[@]}"))"
        lost=$(except "${left[*]}" "${nodes[@]}")
        # With all nodes there, 1 is an error of hpml that would occur again.
        if [ -z "$lost" ] && [ "$status" = 1 ]; then break; fi
        next=$(saved_step "$out")
        idle=$((next > from ? 0 : idle + 1))
        from=$next
        if [ "$idle" -gt 3 ] || [ "$restarts" -ge "$most" ]; then
            give_up "$status" "$lost" "$restarts restarts, $idle starts in a row without a new checkpoint (limits: $most and 3)"
            break
        fi
        if [ ${#left[@]} = 0 ]; then give_up "$status" "$lost" 'no node answers' && break; fi
        used=${#left[@]}
        ranks=$(ranks_of "${left[@]}")
        if [ "$ranks" != "$job_ranks" ]; then
            used=$(nodes_for_batch "$out" "${left[@]}") || {
                give_up "$status" "$lost" "$used"
                break
            }
        fi
        left=("${left[@]:0:used}")
        ranks=$(ranks_of "${left[@]}")
        restarts=$((restarts + 1))
        echo "slurm: status $status: ${lost:-a rank} lost; restart $restarts on ${left[*]} (${#left[@]} of" \
            "${#nodes[@]} nodes, $ranks ranks) from step $from" >&2
        nodes=("${left[@]}")
        shrink_job "$ranks"
    done
    rm -f "$silent"
    return "$status"
}

give_up() { echo "slurm: status $1: ${2:-a rank} lost; not started again: $3" >&2; }

# Fills `tasks` (ranks of each node) from SLURM_TASKS_PER_NODE, as in 4(x2),3.
read_tasks() {
    local part parts count times i=0
    IFS=, read -ra parts <<<"$SLURM_TASKS_PER_NODE"
    for part in "${parts[@]}"; do
        count=${part%%(*} times=1
        case $part in *x*) times=${part#*x} times=${times%)} ;; esac
        while [ "$times" -gt 0 ]; do
            tasks[${nodes[i]}]=$count i=$((i + 1)) times=$((times - 1))
        done
    done
}

ranks_of() {
    local node sum=0
    for node in "$@"; do sum=$((sum + tasks[$node])); done
    echo "$sum"
}

# Prints the words after the first argument that are not among its words.
except() {
    local word rest=() these=" ${1//$'\n'/ } "
    for word in "${@:2}"; do
        case $these in *" $word "*) ;; *) rest+=("$word") ;; esac
    done
    echo "${rest[*]}"
}

newest_saved() { # the newest checkpoint of run file $1
    local file newest=''
    for file in "$1".checkpoints/step-*.h5; do [ ! -e "$file" ] || newest=$file; done
    echo "$newest"
}

saved_step() {
    local file; file=$(newest_saved "$1")
    file=${file##*/step-}
    echo $((10#0${file%%-*}))
}

# Prints how many of these nodes, from the first, divide the global batch of run file $1 by their ranks; else why none do.
nodes_for_batch() {
    local file batch used
    file=$(newest_saved "$1")
    [ -n "$file" ] || { echo "no checkpoint yet, and fewer ranks would begin with another global batch; submit the job again"; return 1; }
    # batch_per_rank x ranks: train.accumulate divides both sides.
    batch=$("${container[@]}" "$HPML" inspect "$file" 2>/dev/null |
        awk '$1 == "train.batch_per_rank" && !b { b = $3 } $1 == "world_size" && !w { w = $2 } END { print b * w }')
    for ((used = $# - 1; used > 0; used--)); do
        if ((batch % $(ranks_of "${@:2:used}") == 0)); then echo "$used" && return; fi
    done
    echo "batch_per_rank x ranks = $batch does not divide by the ranks of any number of these nodes: ${*:2}"
    return 1
}

# Makes later steps, and mpirun, take `nodes` for the job's.
shrink_job() {
    local node list each=''
    list=$(scontrol show hostlist "$(IFS=,; echo "${nodes[*]}")")
    for node in "${nodes[@]}"; do each+=,${tasks[$node]}; done
    export SLURM_JOB_NODELIST=$list SLURM_NODELIST=$list SLURM_TASKS_PER_NODE=${each#,}
    export SLURM_JOB_NUM_NODES=${#nodes[@]} SLURM_NNODES=${#nodes[@]} SLURM_NTASKS=$1 SLURM_NPROCS=$1
    export SLURM_OVERLAP=1 # Slurm counts a step as running on a lost node, and its cores on the others as taken
    step=(--nodelist="$list")
}

# Ends every step of the job: ranks that wait for a lost one, and the signs of life. In the background, because scancel waits
# 11 s for a lost node, long after the others have got the signal.
end_steps() {
    local id
    for id in $(squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format=%i 2>/dev/null); do
        case $id in *.[0-9]*) scancel --signal=KILL "$id" >/dev/null 2>&1 & ;; esac
    done
    sleep 2
}

# Prints those of the nodes that start a process, on one line in their order; asks 32 at a time.
that_answer() {
    [ $# -gt 0 ] || return 0
    local gone
    export -f answers
    gone=$(printf '%s\n' "$@" | xargs -P 32 -I{} bash -c 'answers {} || echo {}')
    except "$gone" "$@"
}
answers() {
    timeout -k 1 15 srun --quiet --overlap --mpi=none --nodes=1 --ntasks=1 --ntasks-per-node=1 --nodelist="$1" \
        true </dev/null >/dev/null 2>&1
}

# While the launcher (process $1) runs, each node gives a sign of life every 5 s. Ends the launcher and its ranks if a node is
# silent and does not answer either; Slurm itself notices after SlurmdTimeout (300 s), and hpml after launch.comm_timeout_s.
watch_nodes() {
    local node checked=$SECONDS got signs gone
    local -a quiet
    local -A heard
    for node in "${nodes[@]}"; do heard[$node]=$SECONDS; done
    exec {signs}< <(exec srun --quiet --overlap --mpi=none --no-kill --nodes=${#nodes[@]} --ntasks=${#nodes[@]} --ntasks-per-node=1 \
        --nodelist="$(IFS=,; echo "${nodes[*]}")" bash -c 'while echo "$SLURMD_NODENAME"; do sleep 5; done' </dev/null 2>/dev/null)
    while kill -0 "$1" 2>/dev/null; do
        got=0
        read -r -t 5 -u "$signs" node || got=$?
        if [ $got = 0 ]; then heard[$node]=$SECONDS; elif [ $got -le 128 ]; then return; fi
        [ $((SECONDS - checked)) -ge 5 ] || continue
        checked=$SECONDS
        quiet=()
        for node in "${nodes[@]}"; do
            [ $((SECONDS - heard[$node])) -lt "$silence" ] || quiet+=("$node")
        done
        [ ${#quiet[@]} -gt 0 ] || continue
        gone=$(except "$(that_answer "${quiet[@]}")" "${quiet[@]}")
        if [ -n "$gone" ]; then
            echo "$gone" >"$silent"
            end_steps
            kill -KILL "$1" 2>/dev/null
            return
        fi
        for node in "${quiet[@]}"; do heard[$node]=$SECONDS; done
    done
}

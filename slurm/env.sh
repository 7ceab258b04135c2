# Modules, container and launcher of your cluster, sourced by every script in this folder. Edit it once.

# module load openmpi hdf5 pytorch      # the modules hpml was built with (scripts/setup lists what it found)
container=()                            # or the image with hpml: (apptainer exec --nv hpml.sif)
HPML=${HPML:-$PWD/target/release/hpml}  # sbatch starts jobs in the folder where it was called
HPML_LAUNCH=${HPML_LAUNCH:-srun}        # srun: Slurm starts the ranks; mpirun: MPI's launcher does, from the first node
srun=(srun --wait=30 --kill-on-bad-exit=0) # add --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH, Intel MPI) where it is not the default
mpirun=("$(dirname "${BASH_SOURCE[0]}")/../scripts/mpirun" --unbound) # the launcher of the MPI on the PATH; unbound, since Open
                                        # MPI's gives a bound rank one core whatever --cpus-per-task says

step=()                                 # more options of srun, and
beside=                                 # a function that runs beside the launcher, given its process id: slurm/elastic.sh has both

# hpml sets the threads per rank itself.
unset OMP_NUM_THREADS
mkdir -p runs

# Runs hpml with these arguments on every task of the job and returns its status. Passes USR1 and TERM on as USR1 to every
# rank, which writes a checkpoint and ends with status 75. Sets `terminated` to yes after TERM, by which Slurm ends a job
# (scancel, time limit, preemption, requeue).
launch() {
    local launcher watcher='' signalled status cut=no
    terminated=no
    case $HPML_LAUNCH in
        # srun no longer takes --cpus-per-task from the job. It ends the other ranks 30 s after one has died, since they would
        # wait for it; if it did so at once, it would kill ranks that are about to end with an error and return that status.
        srun) "${srun[@]}" "${step[@]}" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${container[@]}" "$HPML" "$@" & ;;
        mpirun) "${mpirun[@]}" "${container[@]}" "$HPML" "$@" & ;;
        *) echo "slurm/env.sh: HPML_LAUNCH=$HPML_LAUNCH: must be srun or mpirun" >&2; return 2 ;;
    esac
    launcher=$!
    if [ -n "$beside" ]; then "$beside" "$launcher" & watcher=$!; fi
    # In the background, because bash runs a trap only between two commands; a signal ends `wait` early.
    trap 'signalled=yes cut=yes; kill -USR1 "$launcher" 2>/dev/null || true' USR1
    trap 'signalled=yes cut=yes terminated=yes; kill -USR1 "$launcher" 2>/dev/null || true' TERM
    while
        signalled=no status=0
        wait "$launcher" || status=$?
        [ "$signalled" = yes ]
    do :; done
    [ -z "$watcher" ] || kill "$watcher" 2>/dev/null || true
    trap - USR1 TERM
    settle "$status" "$cut" "$@"
}

# Returns the status of the run itself: the launcher's, unless the run file (after --out) contradicts it. `cut` says whether a
# signal was passed on. Launchers differ after a signal: MPICH 4.0's may end with 0 though all ranks return 75, Open MPI's may
# end with 1.
settle() {
    local status=$1 cut=$2 out='' state=unfinished
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in --out) out=${2:-} ;; --out=*) out=${1#--out=} ;; esac
        shift
    done
    case $status:$cut in 0:* | 1:yes) ;; *) return "$status" ;; esac
    [ -n "$out" ] || return "$status"
    # The file's own status; none without a file, or in one that knows no status.
    if [ -e "$out" ]; then
        state=$("${container[@]}" "$HPML" inspect "$out" 2>/dev/null | awk '$1 == "status" { print $2; exit }') || true
    fi
    case $state:$cut in
        unfinished:yes) status=75 ;;
        unfinished:no) [ "$status" != 0 ] || status=69 ;; # the launcher has lost the ranks
        finished:yes) status=0 ;;
    esac
    return "$status"
}

# Ends a job with the status that `launch` returned, or queues it again, under the same job id, if hpml was cut short.
#   status 0: complete. 1, 2, 101: an error that would occur again. 75: cut short, with a checkpoint.
#   69 (reported by hpml) and others: a rank, a node or the network was lost.
again() {
    local status=$1 before=${SLURM_RESTART_COUNT:-0} most=${HPML_RESTARTS:-100}
    # A cancelled job must stay cancelled, and Slurm itself queues a preempted job again.
    case $status in 0 | 1 | 2 | 101) exit "$status" ;; esac
    if [ "$terminated" = yes ]; then exit "$status"; fi
    if [ "$before" -ge "$most" ]; then
        echo "slurm: status $status after $before restarts, the limit of HPML_RESTARTS: not queued again;" \
            "to continue, submit the job again with HPML_OUT" >&2
        exit "$status"
    fi
    echo "slurm: status $status: queued again, restart $((before + 1)) of at most $most"
    scontrol requeue "$SLURM_JOB_ID" || exit "$status"
    sleep 60 # Slurm ends this shell; an exit of its own could be taken for the job's end
}

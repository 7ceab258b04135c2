# Read by every script in this folder: the one place for your cluster's modules, container and launcher. Edit once.

# module load openmpi hdf5 pytorch      # what hpml was built with (scripts/setup says what it found)
container=()                            # or the image that holds it: (apptainer exec --nv hpml.sif)
HPML=${HPML:-$PWD/target/release/hpml}  # sbatch starts jobs in the folder where it was called
HPML_LAUNCH=${HPML_LAUNCH:-srun}        # srun: Slurm starts the ranks; mpirun: MPI's launcher does, from the first node
srun=(srun --wait=30 --kill-on-bad-exit=0) # add --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH, Intel MPI) where it must be said
mpirun=(mpirun --bind-to none)          # Open MPI's; unbound, or a rank gets one core whatever --cpus-per-task says.
                                        # Intel MPI: (mpiexec.hydra), since its mpirun is a script that no signal gets through

# hpml divides the cores of a task over its ranks itself.
unset OMP_NUM_THREADS
mkdir -p runs

# Runs hpml with these arguments on every task of the job; its status is hpml's. USR1 and TERM to this shell become USR1
# of every rank: write a checkpoint and end with status 75. `terminated` says whether it was TERM, that is, whether Slurm
# is ending the job (scancel, time limit, preemption, requeue).
launch() {
    local launcher signalled status
    terminated=no
    case $HPML_LAUNCH in
        # srun takes --cpus-per-task no longer from the job. A rank that dies takes the others along, 30 s later: they would
        # wait for it. Not at once: of ranks that all end with an error srun would kill the slower ones and give that status.
        srun) "${srun[@]}" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "${container[@]}" "$HPML" "$@" & ;;
        mpirun) "${mpirun[@]}" "${container[@]}" "$HPML" "$@" & ;;
        *) echo "slurm/env.sh: HPML_LAUNCH=$HPML_LAUNCH: must be srun or mpirun" >&2; return 2 ;;
    esac
    launcher=$!
    # In the background, because bash runs a trap only between two commands; a signal ends `wait` early.
    trap 'signalled=yes; kill -USR1 "$launcher" 2>/dev/null || true' USR1
    trap 'signalled=yes terminated=yes; kill -USR1 "$launcher" 2>/dev/null || true' TERM
    while
        signalled=no status=0
        wait "$launcher" || status=$?
        [ "$signalled" = yes ]
    do :; done
    trap - USR1 TERM
    return "$status"
}

# What a job does at its end that may be continued: queues itself again, under the same job id, if hpml was cut short.
#   status 0: done. 1, 2, 101: an error that hpml has told and would meet again. 75: cut short, with a checkpoint.
#   69 (told by hpml) and others: a rank, a node or the network was lost.
again() {
    local status=$1 before=${SLURM_RESTART_COUNT:-0} most=${HPML_RESTARTS:-100}
    # A cancelled job must stay so, and a preempted one is queued again by Slurm.
    case $status in 0 | 1 | 2 | 101) exit "$status" ;; esac
    if [ "$terminated" = yes ]; then exit "$status"; fi
    if [ "$before" -ge "$most" ]; then
        echo "slurm: status $status after $before restarts, which is all HPML_RESTARTS allows" >&2
        exit "$status"
    fi
    echo "slurm: status $status: queued again, restart $((before + 1)) of at most $most"
    scontrol requeue "$SLURM_JOB_ID" || exit "$status"
    sleep 60 # Slurm ends this shell; an exit of its own could be taken for the job's end
}

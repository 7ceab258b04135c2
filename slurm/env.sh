# Read by every script in this folder: where MPI, HDF5 and libtorch come from on your cluster, and where hpml lies. Edit once.

# module load openmpi hdf5 pytorch      # what hpml was built with (scripts/setup says what it found)
HPML=${HPML:-$PWD/target/release/hpml}  # sbatch starts jobs in the folder where it was called

# One rank needs one core's worth of threads; hpml itself divides the cores of a task, so OpenMP must not decide.
unset OMP_NUM_THREADS

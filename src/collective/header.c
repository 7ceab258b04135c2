/* What MPI's header says and rsmpi does not carry: macros that differ between MPI libraries. */
#include <mpi.h>
#include <stdint.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

void *hpml_mpi_in_place(void) { return MPI_IN_PLACE; }

/* Name and version of the library that this header came with. */
const char *hpml_mpi_header(void) {
#if defined(MPI_ABI) && defined(MPI_ABI_VERSION)
    return "MPI's standard ABI " TEXT(MPI_ABI_VERSION) "." TEXT(MPI_ABI_SUBVERSION);
#elif defined(OMPI_MAJOR_VERSION)
    return "Open MPI " TEXT(OMPI_MAJOR_VERSION) "." TEXT(OMPI_MINOR_VERSION) "." TEXT(OMPI_RELEASE_VERSION);
#elif defined(I_MPI_VERSION)
    return "Intel MPI " I_MPI_VERSION;
#elif defined(MVAPICH_VERSION)
    return "MVAPICH " MVAPICH_VERSION;
#elif defined(MVAPICH2_VERSION)
    return "MVAPICH " MVAPICH2_VERSION;
#elif defined(MPICH_VERSION)
    return "MPICH " MPICH_VERSION;
#else
    return "another MPI";
#endif
}

/* Handle of MPI_COMM_WORLD, as a number. rsmpi's differs if it was compiled with another library's header. */
uintptr_t hpml_mpi_comm_world(void) { return (uintptr_t)MPI_COMM_WORLD; }

/* MPI_Get_library_version, without rsmpi's buffer: its length is the header's, from 256 to 8192 bytes, and a library that does
   not belong to the header would write past the end. */
int hpml_mpi_library(char *text, int *length) { return MPI_Get_library_version(text, length); }

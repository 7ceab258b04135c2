/* MPI 5's standard ABI for the crate mpi-sys, which wants Fortran's handles: they are no part of the ABI, and hpml calls none. */
#ifndef MPI_ABI
#define MPI_ABI
#endif
#include_next <mpi.h>
#ifndef HPML_MPI_ABI
#define HPML_MPI_ABI
#define HPML_HANDLE(name, type)                                                          \
    static inline int name##_c2f(type handle) { return name##_toint(handle); }           \
    static inline type name##_f2c(int handle) { return name##_fromint(handle); }
typedef int MPI_Fint;
HPML_HANDLE(MPI_Comm, MPI_Comm)
HPML_HANDLE(MPI_Errhandler, MPI_Errhandler)
HPML_HANDLE(MPI_Group, MPI_Group)
HPML_HANDLE(MPI_Info, MPI_Info)
HPML_HANDLE(MPI_Message, MPI_Message)
HPML_HANDLE(MPI_Op, MPI_Op)
HPML_HANDLE(MPI_Request, MPI_Request)
HPML_HANDLE(MPI_Type, MPI_Datatype)
HPML_HANDLE(MPI_Win, MPI_Win)
HPML_HANDLE(MPI_File, MPI_File)
#endif

-- Example of a modulefile for Lmod. Set `root` to the checkout that was built there, and the names of the modules with which.
--
--   module use CHECKOUT/packaging/modulefiles
--   module load hpml
help([[hpml: data-parallel training under MPI that measures what it costs. Documentation: docs/ of the checkout.]])
whatis("Name: hpml")
whatis("Version: 0.1.0")
whatis("Description: MPI-launched data-parallel training that measures what it costs")

local root = pathJoin(myFileName():match("^(.*)/packaging/modulefiles/"), "")

-- The same as at build time: hpml refuses another MPI by name.
-- depends_on("openmpi/5.0.3", "hdf5/1.14")

-- libtorch needs no variable: the binary knows the folder it was built with.
prepend_path("PATH", pathJoin(root, "target/release"))

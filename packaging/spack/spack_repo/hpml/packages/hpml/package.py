# hpml for Spack 1.0 or newer, of the checkout that this file lies in. How it is used and what was checked: docs/install.md.
#
# Never run by Spack itself: its directives were held against the signatures that Spack documents, and libtorch's steps were run by
# hand. Crates come from the network during the build, as in Spack's other recipes for cargo.
import os

from spack_repo.builtin.build_systems.cargo import CargoPackage

from spack.package import *


class Hpml(CargoPackage):
    """MPI-launched data-parallel training that measures what it costs."""

    # The checkout: packaging/spack/spack_repo/hpml/packages/hpml/package.py is six folders down.
    git = "file://" + os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 6))

    license("MIT OR Apache-2.0")

    version("main", branch="main")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("rust@1.91:", type="build")
    depends_on("llvm+clang", type="build")  # for libclang; the system's will do, as an external: prefix /usr/lib/llvm-14

    depends_on("mpi")
    depends_on("hdf5@1.10:+hl~mpi")  # rank 0 writes the run file
    depends_on("libtorch@2.13")

    def setup_build_environment(self, env: EnvironmentModifications) -> None:
        # MPICC is set by the MPI's recipe, LIBTORCH by libtorch's.
        env.set("HDF5_DIR", self.spec["hdf5"].prefix)
        env.set("LIBCLANG_PATH", self.spec["llvm"].prefix.lib)

    @property
    def build_args(self):
        return ["--locked", "--bin", "hpml"]

    @property
    def check_args(self):
        # The others start ranks.
        return ["--locked", "--release", "--lib"]

    @run_after("install")
    def install_configs(self):
        install_tree("configs", self.prefix.share.hpml.configs)

    @run_after("install")
    def install_man_pages_and_completions(self):
        Executable(self.prefix.bin.hpml)("generate", self.prefix)

    def test_version(self):
        """hpml starts, with the MPI, HDF5 and libtorch that it was built with"""
        which(self.prefix.bin.hpml, required=True)("--version")

# libtorch for hpml, from PyTorch's wheel by pip, with fixed versions and checksums: Spack's own py-torch stopped at 2.10 when this
# was written, and hpml builds with 2.13 only. One that is there already is given as an external, whose prefix is the folder that
# holds torch/ (a site-packages):
#
#   packages:
#     libtorch:
#       buildable: false
#       externals: [{spec: libtorch@2.13.0+cuda, prefix: /apps/pytorch/lib/python3.12/site-packages}]
from spack_repo.builtin.build_systems.generic import Package

from spack.package import *


class Libtorch(Package):
    """The C++ library of PyTorch, with its headers."""

    homepage = "https://pytorch.org"

    has_code = False  # pip fetches the wheels

    license("BSD-3-Clause")

    version("2.13.0")

    variant("cuda", default=False, description="With CUDA, cuDNN and NCCL: 4 GB instead of 1")

    depends_on("python@3.9:", type="build")
    depends_on("py-pip@22:", type="build")

    conflicts("platform=darwin")
    conflicts("platform=windows")
    requires("target=x86_64:", "target=aarch64:", policy="one_of", msg="there are wheels for x86_64 and aarch64")

    sanity_check_is_file = ["torch/lib/libtorch_cpu.so", "torch/include/torch/headeronly/version.h"]

    def install(self, spec, prefix):
        wheels = join_path(self.package_dir, "cuda.txt" if spec.satisfies("+cuda") else "cpu.txt")
        # Of any Python: nothing here is imported. The files list all that libtorch loads.
        wanted = ["--only-binary=:all:", "--python-version", "3.12", "--no-deps", "--require-hashes"]
        python = spec["python"].command
        python("-m", "pip", "install", *wanted, "--target", prefix, "--requirement", wheels)

    def setup_dependent_build_environment(
        self, env: EnvironmentModifications, dependent_spec: Spec
    ) -> None:
        env.set("LIBTORCH", self.prefix.torch)

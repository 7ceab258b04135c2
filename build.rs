//! Writes the place of libtorch into the binary (so that no LD_LIBRARY_PATH is needed), its version and the commit, and
//! compiles the one line of C that MPI's macros force on us.
use std::path::Path;
use std::process::Command;

fn main() {
    // From torch-sys: the library folder of LIBTORCH, or of the Python that LIBTORCH_USE_PYTORCH speaks of.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        println!("cargo:rustc-env=HPML_LIBTORCH_VERSION={}", libtorch_version(Path::new(&lib)));
        compile_shim(Path::new(&lib));
    }
    println!("cargo:rustc-env=HPML_GIT_COMMIT={}", git_commit());
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/index");
    println!("cargo:rerun-if-changed=src");

    let mpi = build_probe_mpi::probe().expect("no MPI found: install Open MPI or MPICH, or point MPICC at its mpicc");
    cc::Build::new().file("src/collective/in_place.c").includes(&mpi.include_paths).compile("hpml_in_place");

    // Dimension scales. hdf5-metno-sys has put the folder where it found libhdf5 on the linker's path, and HDF5 installs
    // libhdf5_hl beside it under that name (Debian too, in its hdf5/serial and hdf5/openmpi).
    println!("cargo:rustc-link-lib=hdf5_hl");
}

/// libtorch's C++ calls that tch lacks.
fn compile_shim(lib: &Path) {
    let include = lib.with_file_name("include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .files(["libtorch.cpp", "batch_norm.cpp", "graph.cpp"].map(|file| format!("src/sys/{file}")))
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .flag_if_supported("-Wno-unused-parameter")
        .compile("hpml_libtorch");
}

fn libtorch_version(lib: &Path) -> String {
    let include = lib.with_file_name("include");
    let text = ["torch/headeronly/version.h", "torch/csrc/api/include/torch/version.h"]
        .iter()
        .filter_map(|header| std::fs::read_to_string(include.join(header)).ok())
        .collect::<String>();
    let part = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("#define TORCH_VERSION_{name} ")));
        line.map_or("?", str::trim).to_owned()
    };
    format!("{}.{}.{}", part("MAJOR"), part("MINOR"), part("PATCH"))
}

fn git_commit() -> String {
    let describe = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]).output();
    match describe {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => "unknown".into(),
    }
}

//! Writes libtorch's folder (so that no LD_LIBRARY_PATH is needed), its version and the commit into the binary, and compiles
//! the C++ of `src/sys` and the lines of C that MPI's macros require.
use std::path::Path;
use std::process::Command;

fn main() {
    // Set by torch-sys: the library folder of LIBTORCH, or of the Python that LIBTORCH_USE_PYTORCH selects.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        // Functions are looked up when they are first called: with all at the start, as is rustc's default, the loader ends a
        // program that finds another libtorch, with the name of the first function missing and before it can say which it needs.
        println!("cargo:rustc-link-arg=-Wl,-z,lazy");
        // The libraries that libtorch itself needs for a GPU are not there without one. GNU ld, the linker of Rust from a
        // distribution and on other CPUs than x86-64, ends for their functions; LLVM's, the default elsewhere, never looks.
        println!("cargo:rustc-link-arg=-Wl,--allow-shlib-undefined");
        println!("cargo:rustc-env=HPML_LIBTORCH_VERSION={}", libtorch_version(Path::new(&lib)));
        println!(
            "cargo:rerun-if-changed={}",
            Path::new(&lib).with_file_name("include/torch/headeronly/version.h").display()
        );
        compile_shim(Path::new(&lib));
    }
    println!("cargo:rustc-env=HPML_GIT_COMMIT={}", git_commit());
    // Every commit and checkout is written to this log. The index changes, too, but already when git reads it.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo:rerun-if-changed={log}");
    }
    println!("cargo:rerun-if-changed=src");

    find_mpi();

    // For dimension scales. hdf5-metno-sys has put the folder where it found libhdf5 on the linker's path, and HDF5 installs
    // libhdf5_hl beside it under that name (Debian too, in its hdf5/serial and hdf5/openmpi).
    println!("cargo:rustc-link-lib=hdf5_hl");
}

/// Compiles the lines of C that MPI's macros require, and writes the folder of a private MPI into the binary: without it the
/// loader would find no libmpi, or silently the system's, which may be another one of the same name.
fn find_mpi() {
    // What build-probe-mpi and the compiler wrappers of MPI libraries read.
    for name in ["MPICC", "MPI_HOME", "MPI_PKG_CONFIG", "CRAY_MPICH_DIR", "I_MPI_ROOT", "OPAL_PREFIX"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let mpi = build_probe_mpi::probe().expect("no MPI found: install Open MPI or MPICH, or point MPICC at its mpicc");
    if let Some(mpicc) = mpi.mpicc.as_deref().and_then(in_path) {
        println!("cargo:rerun-if-changed={}", mpicc.display());
    }

    // The crate mpi-sys does not notice that MPI has changed, and half a program for each of two libraries crashes.
    let found = format!("{:?} {:?} {:?}", mpi.include_paths, mpi.lib_paths, mpi.libs);
    let stamp = Path::new(&std::env::var("OUT_DIR").expect("set by cargo")).join("mpi");
    let before = std::fs::read_to_string(&stamp).unwrap_or_else(|_| found.clone());
    assert!(
        before == found,
        "MPI has changed (it was {before}, now it is {found}): run scripts/setup, then build again"
    );
    std::fs::write(&stamp, found).expect("OUT_DIR can be written");

    cc::Build::new().file("src/collective/header.c").includes(&mpi.include_paths).compile("hpml_mpi_header");
    let private = mpi.lib_paths.iter().filter(|folder| !is_searched_by_loader(folder));
    for folder in private.filter(|folder| folder.is_absolute()) {
        // With new tags LD_LIBRARY_PATH, which modules set, still comes first.
        println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{}", folder.display());
    }
}

/// The program `name` as a shell would find it.
fn in_path(name: &str) -> Option<std::path::PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&folders).map(|folder| folder.join(name)).collect::<Vec<_>>();
    places.into_iter().find(|place| place.is_file())
}

/// Whether the loader looks into `folder` by itself.
fn is_searched_by_loader(folder: &Path) -> bool {
    let parent = folder.parent().unwrap_or(folder);
    let system = |path: &Path| {
        [Path::new("/lib"), Path::new("/usr/lib"), Path::new("/lib64"), Path::new("/usr/lib64")].contains(&path)
    };
    // Debian's folder for an architecture: /usr/lib/x86_64-linux-gnu.
    system(folder)
        || system(parent) && folder.file_name().is_some_and(|name| name.to_string_lossy().contains("-linux-gnu"))
}

/// Compiles the C++ of `src/sys`, with little optimization, which thin calls do not need. libtorch's headers take half a minute
/// and this script runs after every edit, so the result is kept until the sources, libtorch or the compiler change.
fn compile_shim(lib: &Path) {
    let files = [
        "libtorch.cpp",
        "allocator.cpp",
        "autocast.cpp",
        "autograd.cpp",
        "batch_norm/cpu.cpp",
        "batch_norm/gpu.cpp",
        "convolution.cpp",
        "generator.cpp",
        "graph.cpp",
        "optimizer.cpp",
        "script.cpp",
        "threads.cpp",
        "version.cpp",
    ]
    .map(|file| format!("src/sys/{file}"));
    let read = files.iter().map(String::as_str).chain(["src/sys/failure.h"]);
    let sources = read.map(|file| std::fs::read_to_string(file).expect("a source file of hpml"));
    let compiler = ["CXX", "CXXFLAGS"].map(|name| {
        println!("cargo:rerun-if-env-changed={name}");
        std::env::var(name).unwrap_or_default()
    });
    let libtorch = [lib.display().to_string(), libtorch_version(lib)];
    let made_from = sources.chain(compiler).chain(libtorch).collect::<String>();

    let out = std::env::var("OUT_DIR").expect("set by cargo");
    let stamp = Path::new(&out).join("shim-made-from");
    let is_there = Path::new(&out).join("libhpml_libtorch.a").exists();
    if is_there && std::fs::read_to_string(&stamp).is_ok_and(|before| before == made_from) {
        println!("cargo:rustc-link-search=native={out}");
        println!("cargo:rustc-link-lib=static=hpml_libtorch");
        println!("cargo:rustc-link-lib=stdc++");
        return;
    }
    let include = lib.with_file_name("include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .opt_level(1)
        .debug(false)
        .files(files)
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .flag_if_supported("-Wno-unused-parameter")
        .flag_if_supported("-fopenmp") // for at::parallel_for; torch-sys links the runtime that libtorch has
        .compile("hpml_libtorch");
    std::fs::write(&stamp, made_from).expect("OUT_DIR can be written");
}

/// Version of libtorch by the headers beside its library folder `lib`, for example `2.13.0`.
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

/// Commit of the checkout, with `-dirty` if a file differs; `unknown` outside a checkout.
fn git_commit() -> String {
    git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]).unwrap_or_else(|| "unknown".into())
}

/// Output of git; `None` if git is not installed, or this is no checkout.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

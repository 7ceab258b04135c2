//! Writes libtorch's folder (so that no LD_LIBRARY_PATH is needed), its version and the commit into the binary, and compiles
//! the C++ of `src/sys` and the line of C that MPI's macros require.
use std::path::Path;
use std::process::Command;

fn main() {
    // Set by torch-sys: the library folder of LIBTORCH, or of the Python that LIBTORCH_USE_PYTORCH selects.
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
        // Functions are looked up when they are first called: with all at the start, as is rustc's default, the loader ends a
        // program that finds another libtorch, with the name of the first function missing and before it can say which it needs.
        println!("cargo:rustc-link-arg=-Wl,-z,lazy");
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

    let mpi = build_probe_mpi::probe().expect("no MPI found: install Open MPI or MPICH, or point MPICC at its mpicc");
    cc::Build::new().file("src/collective/in_place.c").includes(&mpi.include_paths).compile("hpml_in_place");

    // For dimension scales. hdf5-metno-sys has put the folder where it found libhdf5 on the linker's path, and HDF5 installs
    // libhdf5_hl beside it under that name (Debian too, in its hdf5/serial and hdf5/openmpi).
    println!("cargo:rustc-link-lib=hdf5_hl");
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

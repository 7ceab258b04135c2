//! hpml's batch-norm kernels for GPUs: CUDA source that NVRTC compiles on first use for the present GPU, launched through
//! NVIDIA's driver. Where either is missing, libtorch's operations compute the result in more passes.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Device, Kind, Tensor};

use super::super::gpu::{self, DRIVER};
use super::super::libtorch::failure;
use super::BatchNorm;

const SOURCE: &str = include_str!("kernels.cu");
/// NVRTC's file names, in libtorch's wheels and in NVIDIA's packages.
const COMPILERS: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
/// libtorch's library that is linked to the NVRTC of its wheel.
const LIBTORCHS_COMPILER: &str = "libcaffe2_nvrtc.so";

/// Suffixes of the kernels' names, in the order of gpu.cpp.
const TYPES: [&str; 2] = ["bf16", "f32"];
/// Kernels and the suffixes of their gates, in the order of gpu.cpp.
const KERNELS: [(&str, &str); 8] = [
    ("statistics", ""),
    ("normalize", ""),
    ("gradient_sums", "_open"),
    ("gradient_sums", "_own"),
    ("gradient_sums", "_result"),
    ("input_gradient", "_open"),
    ("input_gradient", "_own"),
    ("input_gradient", "_result"),
];
/// Blocks per multiprocessor in a launch.
const BLOCKS: i32 = 2;
/// float32 sums that each block leaves for the last one.
const PARTIAL: i64 = 128;

unsafe extern "C" {
    fn hpml_batch_norm_kernels(
        launch: *const c_void,
        functions: *const *mut c_void,
        blocks: c_int,
        partial: *const torch_sys::C_tensor,
        arrived: *const torch_sys::C_tensor,
    );
    fn hpml_batch_norm_takes(input: *const torch_sys::C_tensor) -> bool;
    fn hpml_batch_norm(
        input: *const torch_sys::C_tensor,
        weight: *const torch_sys::C_tensor,
        bias: *const torch_sys::C_tensor,
        shortcut: *const torch_sys::C_tensor,
        running_mean: *const torch_sys::C_tensor,
        running_variance: *const torch_sys::C_tensor,
        rectified: bool,
        momentum: f64,
        epsilon: f64,
    ) -> *mut torch_sys::C_tensor;
}

/// [`BatchNorm::apply`] on GPU `index`, the only one of this process.
pub(super) fn apply(
    norm: &BatchNorm,
    input: &Tensor,
    shortcut: Option<&Tensor>,
    rectified: bool,
    index: usize,
) -> Option<Tensor> {
    // SAFETY: all pointers are live tensors for the length of the call, or null where that is allowed; the result is a new
    // tensor that is ours, or null.
    unsafe {
        if !are_ready(index) || !hpml_batch_norm_takes(input.as_ptr()) {
            return None;
        }
        let output = hpml_batch_norm(
            input.as_ptr(),
            norm.weight.as_ptr(),
            norm.bias.as_ptr(),
            shortcut.map_or(std::ptr::null(), Tensor::as_ptr),
            norm.running_mean.as_ptr(),
            norm.running_variance.as_ptr(),
            rectified,
            norm.momentum,
            norm.epsilon,
        );
        assert!(!output.is_null(), "Torch({})", failure());
        Some(Tensor::from_ptr(output))
    }
}

/// Whether the kernels are loaded for GPU `index`, the only one of this process; compiles them on the first call.
fn are_ready(index: usize) -> bool {
    static READY: OnceLock<bool> = OnceLock::new();
    *READY.get_or_init(|| match load(index) {
        Ok(()) => true,
        Err(reason) => {
            log::warn!(
                "batch norm uses libtorch's kernels, which are slower than hpml's: {reason}; install NVRTC and a recent driver"
            );
            false
        }
    })
}

/// Compiles the kernels and hands them to gpu.cpp.
///
/// # Errors
/// Returns the reason if the driver or NVRTC is missing, too old or fails.
fn load(index: usize) -> Result<(), String> {
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    type LoadModule = unsafe extern "C" fn(*mut *mut c_void, *const c_void) -> c_int;
    type Function = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> c_int;
    let driver = gpu::open(DRIVER, RTLD_NOW)?;
    let old = |error: libloading::Error| format!("the NVIDIA driver is too old ({error})");
    let status = |call: &str, code: c_int| match code {
        0 => Ok(()),
        code => Err(format!("{call}: error {code}")),
    };
    // Making a tensor also makes libtorch's context, into which the kernels are loaded, this thread's.
    let zeros = |elements: i64, kind: Kind| Tensor::zeros([elements], (kind, Device::Cuda(index)));
    // SAFETY: the names and signatures are those of CUDA's driver API, cuda.h; pointers are to live variables of the sizes
    // that it writes. The library and the module stay open.
    unsafe {
        let get = driver.get::<Get>(b"cuDeviceGet\0").map_err(old)?;
        let attribute = driver.get::<Attribute>(b"cuDeviceGetAttribute\0").map_err(old)?;
        let load_module = driver.get::<LoadModule>(b"cuModuleLoadData\0").map_err(old)?;
        let function = driver.get::<Function>(b"cuModuleGetFunction\0").map_err(old)?;
        let launch = driver.get::<unsafe extern "C" fn()>(b"cuLaunchKernel\0").map_err(old)?;
        let mut device = 0;
        status("cuDeviceGet", get(&mut device, index as c_int))?;
        // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR
        let mut values = [0; 3];
        for (value, code) in values.iter_mut().zip([16, 75, 76]) {
            status("cuDeviceGetAttribute", attribute(value, code, device))?;
        }
        let [processors, major, minor] = values;
        let blocks = processors * BLOCKS;
        let (partial, arrived) = (zeros(i64::from(blocks) * PARTIAL, Kind::Float), zeros(i64::from(blocks), Kind::Int));
        let binary = compile(&format!("sm_{major}{minor}"))?;
        let mut module = null_mut();
        status("cuModuleLoadData", load_module(&mut module, binary.as_ptr().cast()))?;
        let mut functions = Vec::new();
        for name in names() {
            let mut found = null_mut();
            status("cuModuleGetFunction", function(&mut found, module, name.as_ptr()))?;
            functions.push(found);
        }
        let launch = *launch as *const c_void;
        hpml_batch_norm_kernels(launch, functions.as_ptr(), blocks, partial.as_ptr(), arrived.as_ptr());
    }
    std::mem::forget(driver);
    Ok(())
}

/// Names of the kernels in the source, in the order of gpu.cpp.
fn names() -> impl Iterator<Item = CString> {
    let of = |kind: &str, (kernel, gate): (&str, &str)| CString::new(format!("{kernel}_{kind}{gate}"));
    TYPES.into_iter().flat_map(move |kind| KERNELS.map(|kernel| of(kind, kernel).expect("names are words")))
}

/// Compiles the kernels for a GPU `architecture`, for example `sm_90`, to a CUBIN.
///
/// # Errors
/// Returns the reason if NVRTC is missing, or the first error that it reports.
fn compile(architecture: &str) -> Result<Vec<u8>, String> {
    type Program = *mut c_void;
    type Create = unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int;
    type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
    type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
    type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
    let nvrtc = compiler()?;
    let old = |error: libloading::Error| format!("NVRTC is too old ({error})");
    let [source, name] = [SOURCE, "kernels.cu"].map(|text| CString::new(text).expect("text without zeros"));
    let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".into()];
    let options = options.map(|option| CString::new(option).expect("text without zeros"));
    let pointers = options.each_ref().map(|option| option.as_ptr());
    // SAFETY: the names and signatures are those of nvrtc.h; texts end in a 0, buffers have the sizes that NVRTC reported.
    unsafe {
        let create = nvrtc.get::<Create>(b"nvrtcCreateProgram\0").map_err(old)?;
        let build = nvrtc.get::<Compile>(b"nvrtcCompileProgram\0").map_err(old)?;
        let [log_size, size] = [&b"nvrtcGetProgramLogSize\0"[..], b"nvrtcGetCUBINSize\0"].map(|n| nvrtc.get::<Size>(n));
        let [log, binary] = [&b"nvrtcGetProgramLog\0"[..], b"nvrtcGetCUBIN\0"].map(|n| nvrtc.get::<Text>(n));
        let (log_size, size, log, binary) =
            (log_size.map_err(old)?, size.map_err(old)?, log.map_err(old)?, binary.map_err(old)?);
        let mut program = null_mut();
        let made = create(&mut program, source.as_ptr(), name.as_ptr(), 0, std::ptr::null(), std::ptr::null());
        let code = if made == 0 { build(program, pointers.len() as c_int, pointers.as_ptr()) } else { made };
        let (ask, give) = if code == 0 { (size, binary) } else { (log_size, log) };
        let mut bytes = 0;
        ask(program, &mut bytes);
        let mut result = vec![0u8; bytes + 1];
        give(program, result.as_mut_ptr().cast());
        match code {
            0 => Ok(result),
            code => {
                let text = CStr::from_bytes_until_nul(&result).unwrap_or_default().to_string_lossy();
                let line = text.lines().find(|line| line.contains("error")).unwrap_or_default();
                Err(format!("NVRTC for {architecture}: error {code} {line}"))
            }
        }
    }
}

/// Opens NVRTC.
///
/// # Errors
/// Returns the loader's reason for the newest of [`COMPILERS`].
fn compiler() -> Result<Library, String> {
    let _ = gpu::open(LIBTORCHS_COMPILER, RTLD_NOW | RTLD_GLOBAL).map(std::mem::forget);
    let found: Vec<Result<Library, String>> = COMPILERS.map(|name| gpu::open(name, RTLD_NOW)).into();
    let reason = found[0].as_ref().err().cloned();
    let library = found.into_iter().find_map(Result::ok);
    library.ok_or_else(|| format!("no NVRTC here ({})", reason.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_compile_for_each_generation() {
        if let Err(reason) = compiler() {
            crate::message::print(format_args!("left out: {reason}"));
            return;
        }
        for architecture in ["sm_75", "sm_80", "sm_90", "sm_100"] {
            let binary = compile(architecture).unwrap();
            let has = |name: &CString| binary.windows(name.as_bytes().len()).any(|window| window == name.as_bytes());
            assert!(names().all(|name| has(&name)), "{architecture}");
        }
        assert!(compile("sm_1").unwrap_err().contains("sm_1"));
    }
}

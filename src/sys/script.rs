//! TorchScript modules from files: their tensors under their true names, and their forward pass.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr::NonNull;

use tch::Tensor;

use super::libtorch::failure_text;

unsafe extern "C" {
    fn hpml_script_load(path: *const c_char, description: *const c_char) -> *mut c_void;
    fn hpml_script_free(script: *mut c_void);
    fn hpml_script_description(script: *mut c_void) -> *const c_char;
    fn hpml_script_facts(script: *mut c_void) -> u32;
    fn hpml_script_slots(script: *mut c_void) -> usize;
    fn hpml_script_name(script: *mut c_void, index: usize) -> *const c_char;
    fn hpml_script_is_parameter(script: *mut c_void, index: usize) -> bool;
    fn hpml_script_first(script: *mut c_void, index: usize) -> usize;
    fn hpml_script_tensor(script: *mut c_void, index: usize) -> *mut torch_sys::C_tensor;
    fn hpml_script_train(script: *mut c_void, on: bool) -> bool;
    fn hpml_script_forward(
        script: *mut c_void,
        input: *const torch_sys::C_tensor,
        momentum: f64,
        compute: Option<Compute>,
        context: *const c_void,
    ) -> *mut torch_sys::C_tensor;
}

/// Function that computes a batch norm in training: context; input, weight, bias, running mean and variance; momentum, epsilon.
type Compute = unsafe extern "C" fn(
    *const c_void,
    *const torch_sys::C_tensor,
    *const torch_sys::C_tensor,
    *const torch_sys::C_tensor,
    *const torch_sys::C_tensor,
    *const torch_sys::C_tensor,
    f64,
    f64,
) -> *mut torch_sys::C_tensor;

/// Function that computes a module's batch norms in training.
pub type ComputeBatchNorm<'a> = &'a dyn Fn(&ScriptBatchNorm) -> Tensor;

/// A batch norm in training, as a module's forward pass comes to it.
pub struct ScriptBatchNorm {
    /// Input, `[n, c, ...]`.
    pub input: Tensor,
    /// Scale, `[c]`.
    pub weight: Option<Tensor>,
    /// Shift, `[c]`.
    pub bias: Option<Tensor>,
    /// Running mean, `[c]`, to be updated.
    pub mean: Option<Tensor>,
    /// Running variance, `[c]`, to be updated.
    pub variance: Option<Tensor>,
    /// Share of the batch in the running statistics.
    pub momentum: f64,
    /// Constant that is added to the variance.
    pub epsilon: f64,
}

/// Calls the [`ComputeBatchNorm`] that `context` points to.
unsafe extern "C" fn compute_batch_norm(
    context: *const c_void,
    input: *const torch_sys::C_tensor,
    weight: *const torch_sys::C_tensor,
    bias: *const torch_sys::C_tensor,
    mean: *const torch_sys::C_tensor,
    variance: *const torch_sys::C_tensor,
    momentum: f64,
    epsilon: f64,
) -> *mut torch_sys::C_tensor {
    // SAFETY: `context` is that of `Script::forward`, which waits for this call; the pointers are live tensors or null, and the
    // clones are handles of our own. A panic in the function ends the process here.
    unsafe {
        let given =
            |tensor: *const torch_sys::C_tensor| (!tensor.is_null()).then(|| Tensor::clone_from_ptr(tensor.cast_mut()));
        let compute = *context.cast::<ComputeBatchNorm>();
        let call = ScriptBatchNorm {
            input: Tensor::clone_from_ptr(input.cast_mut()),
            weight: given(weight),
            bias: given(bias),
            mean: given(mean),
            variance: given(variance),
            momentum,
            epsilon,
        };
        std::mem::ManuallyDrop::new(compute(&call)).as_ptr().cast_mut() // now C++'s
    }
}

/// A TorchScript module, scripted or traced, on the CPU until its tensors are moved.
pub struct Script(NonNull<c_void>);

/// A parameter or buffer of a [`Script`], by one of its names.
pub struct ScriptTensor {
    /// Name in the `state_dict`, for example `layer1.0.conv1.weight`.
    pub name: String,
    /// The module's own tensor: what is done to it, the module sees.
    pub tensor: Tensor,
    /// Whether it is a parameter; a buffer otherwise.
    pub is_parameter: bool,
    /// Index of the same tensor under its first name, in the list that this one is in; its own index unless it is tied.
    pub first: usize,
}

/// What a module's graph says of training and test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScriptFacts {
    /// Whether operations follow the module's mode: it was scripted.
    pub reads_mode: bool,
    /// Whether dropout, batch norm or the like was written down as in training: it was traced. [`Script`] lets these follow the
    /// module's mode.
    pub baked_training: bool,
    /// Whether dropout, batch norm or the like was written down as in a test.
    pub baked_test: bool,
    /// Whether forward enters autocast by itself: [`Script::forward`] would compute in float32 there.
    pub autocast: bool,
    /// Whether there is a batch norm.
    pub batch_norm: bool,
}

impl Script {
    /// Loads the module in the file at `path`, and the text of the file `description` in its archive ("" if there is none).
    ///
    /// # Errors
    /// Returns libtorch's message, which has many lines, if the file is none of TorchScript or damaged.
    pub fn load(path: &Path, description: &str) -> Result<(Script, String), String> {
        let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| "its name has a 0 byte".to_owned())?;
        let description = CString::new(description).expect("a name in the program");
        // SAFETY: both texts live for the length of the call; returns an object of ours, or null.
        let loaded = NonNull::new(unsafe { hpml_script_load(path.as_ptr(), description.as_ptr()) });
        let script = Script(loaded.ok_or_else(failure_text)?);
        // SAFETY: a text that ends in a 0 and lives as long as the object.
        let text = unsafe { CStr::from_ptr(hpml_script_description(script.0.as_ptr())) };
        let text = text.to_string_lossy().into_owned();
        Ok((script, text))
    }

    /// Parameters and buffers under all their names, in the order of the `state_dict`.
    pub fn tensors(&self) -> Vec<ScriptTensor> {
        let script = self.0.as_ptr();
        // SAFETY: the object is ours; indices are below the number of its slots; the name ends in a 0 and lives as long as the
        // object; the tensor is a new handle that is ours.
        unsafe {
            let one = |index| ScriptTensor {
                name: CStr::from_ptr(hpml_script_name(script, index)).to_string_lossy().into_owned(),
                tensor: Tensor::from_ptr(hpml_script_tensor(script, index)),
                is_parameter: hpml_script_is_parameter(script, index),
                first: hpml_script_first(script, index),
            };
            (0..hpml_script_slots(script)).map(one).collect()
        }
    }

    /// What the graph of the forward pass says of training and test.
    pub fn facts(&self) -> ScriptFacts {
        // SAFETY: the object is ours.
        let facts = unsafe { hpml_script_facts(self.0.as_ptr()) };
        let has = |bit: u32| facts & bit != 0; // the bits of script.cpp
        ScriptFacts {
            reads_mode: has(1),
            baked_training: has(2),
            baked_test: has(4),
            autocast: has(8),
            batch_norm: has(16),
        }
    }

    /// Sets the mode of the module and of all in it: training or test.
    pub fn set_training(&self, on: bool) {
        // SAFETY: the object is ours.
        let set = unsafe { hpml_script_train(self.0.as_ptr(), on) };
        assert!(set, "Torch({})", failure_text());
    }

    /// Output of the module for one `input`, computed operation by operation: the graph's optimizer stays off on this thread, so
    /// that values and the order of the gradients are those of the Python module. In training `momentum` replaces every batch
    /// norm's own, and `batch_norm` computes them.
    ///
    /// # Errors
    /// Returns libtorch's message, which has many lines, if an operation fails or the output is no tensor.
    pub fn forward(
        &self,
        input: &Tensor,
        momentum: Option<f64>,
        batch_norm: Option<ComputeBatchNorm>,
    ) -> Result<Tensor, String> {
        let compute = batch_norm.is_some().then_some(compute_batch_norm as Compute);
        let context = batch_norm.as_ref().map_or(std::ptr::null(), |compute| std::ptr::from_ref(compute).cast());
        let momentum = momentum.unwrap_or(f64::NAN);
        // SAFETY: the object is ours; the input is a live tensor and the context a live reference for the length of the call; the
        // result is a new tensor that is ours, or null.
        unsafe {
            let output = hpml_script_forward(self.0.as_ptr(), input.as_ptr(), momentum, compute, context);
            if output.is_null() { Err(failure_text()) } else { Ok(Tensor::from_ptr(output)) }
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // SAFETY: an object of ours, freed once.
        unsafe { hpml_script_free(self.0.as_ptr()) };
    }
}

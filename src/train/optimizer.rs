//! SGD with momentum on flat buffers.

use crate::config;

/// `torch.optim.SGD` without dampening and Nesterov: `g += weight_decay p; v = momentum v + g; p -= lr v`.
/// Source: PyTorch, torch/optim/sgd.py.
pub struct Sgd {
    momentum: f32,
    weight_decay: f32,
    velocity: Vec<f32>, // [elements]; zero before the first step, which makes that step v = g, as in PyTorch
}

impl Sgd {
    /// For `elements` parameters.
    pub fn new(elements: usize, config: &config::Optim) -> Sgd {
        let (momentum, weight_decay) = (config.momentum as f32, config.weight_decay as f32);
        Sgd { momentum, weight_decay, velocity: vec![0.0; elements] }
    }

    /// One update of `parameters` by `gradients`, both `[elements]`, in the same order at every call.
    pub fn step(&mut self, parameters: &mut [f32], gradients: &[f32], lr: f64) {
        let (momentum, weight_decay, lr) = (self.momentum, self.weight_decay, lr as f32);
        // One pass over memory; the zip lets the compiler vectorise it.
        for ((parameter, &gradient), velocity) in parameters.iter_mut().zip(gradients).zip(&mut self.velocity) {
            let gradient = gradient + weight_decay * *parameter;
            *velocity = momentum * *velocity + gradient;
            *parameter -= lr * *velocity;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.01), float32, gradients 1, 0, -2.
    #[test]
    fn three_steps_equal_pytorchs() {
        let mut sgd = Sgd::new(1, &config::Optim { momentum: 0.9, weight_decay: 0.01 });
        let mut parameter = [1.0f32];
        let mut seen = Vec::new();
        for gradient in [1.0, 0.0, -2.0] {
            sgd.step(&mut parameter, &[gradient], 0.1);
            seen.push(parameter[0]);
        }
        for (found, expected) in seen.iter().zip([0.899, 0.807_201, 0.923_774_6]) {
            assert!((found - expected).abs() < 1e-6, "{seen:?}");
        }
    }
}

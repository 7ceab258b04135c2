// TorchScript modules: their tensors under their true names, their forward pass, and what a trace has baked into them.
#include "failure.h"

#include <ATen/ATen.h>
#include <torch/csrc/jit/api/function_impl.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/constants.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/inliner.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/library.h>

#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {
using namespace torch::jit;

// What replaces a batch norm's own work in the forward pass that this thread runs.
struct BatchNormRule {
    double momentum = NAN; // of every batch norm; NaN: its own
    // Computes a batch norm in training, given `context`; null: libtorch does.
    at::Tensor *(*compute)(const void *context, const at::Tensor *input, const at::Tensor *weight, const at::Tensor *bias,
                           const at::Tensor *mean, const at::Tensor *variance, double momentum, double epsilon) = nullptr;
    const void *context = nullptr;
};
thread_local BatchNormRule rule;

// Batch norm as in the file, except for that rule. `batch_norm` of the files' graphs is replaced by it.
at::Tensor batch_norm(const at::Tensor &input, const std::optional<at::Tensor> &weight, const std::optional<at::Tensor> &bias,
                      const std::optional<at::Tensor> &mean, const std::optional<at::Tensor> &variance, bool training,
                      double momentum, double epsilon, bool cudnn) {
    if (!std::isnan(rule.momentum)) momentum = rule.momentum;
    if (!training || rule.compute == nullptr) {
        return at::batch_norm(input, weight, bias, mean, variance, training, momentum, epsilon, cudnn);
    }
    const auto given = [](const std::optional<at::Tensor> &tensor) { return tensor && tensor->defined() ? &*tensor : nullptr; };
    const std::unique_ptr<at::Tensor> output(rule.compute(rule.context, &input, given(weight), given(bias), given(mean),
                                                          given(variance), momentum, epsilon));
    return *output;
}

// Makes batch_norm known to libtorch, once. No static initializer: that would call libtorch before main has checked its version.
void register_batch_norm() {
    static const torch::Library library = [] {
        torch::Library made(torch::Library::DEF, "hpml", std::nullopt, __FILE__, __LINE__);
        made.def("batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, "
                 "bool training, float momentum, float eps, bool cudnn_enabled) -> Tensor",
                 batch_norm);
        return made;
    }();
}

// A tensor of the module; `first` is the slot of the same tensor under its first name.
struct Slot {
    std::string name;
    at::Tensor tensor;
    bool is_parameter;
    size_t first;
};

// What the graph says of training and test; bits, equal to those of script.rs.
enum Fact : uint32_t {
    READS_MODE = 1,     // an operation follows the module's `training`: the module was scripted
    BAKED_TRAINING = 2, // an operation has `train = True` written into it
    BAKED_TEST = 4,     // an operation has `train = False` written into it
    AUTOCAST = 8,       // forward enters autocast, which the executor without its optimizer passes over
    BATCH_NORM = 16,    // it has a batch norm
};

struct Script {
    Module module;
    std::vector<Slot> slots;
    std::string description;
    uint32_t facts = 0;
};

// Slots of `module` in the order of Python's state_dict: own parameters, own buffers, then those of each child.
void collect(const Module &module, const std::string &prefix, Script &script,
             std::unordered_map<const void *, size_t> &seen) {
    const auto object = module._ivalue();
    const auto type = object->type();
    for (const bool parameters : {true, false}) {
        for (size_t index = 0; index < type->numAttributes(); ++index) {
            const auto value = object->getSlot(index);
            const bool wanted = parameters ? type->is_parameter(index) : type->is_buffer(index);
            if (!wanted || !value.isTensor() || !value.toTensor().defined()) continue;
            const auto &tensor = value.toTensor();
            const size_t first = seen.emplace(tensor.unsafeGetTensorImpl(), script.slots.size()).first->second;
            script.slots.push_back({prefix + type->getAttributeName(index), tensor, parameters, first});
        }
    }
    for (const auto &child : module.named_children()) collect(child.value, prefix + child.name + ".", script, seen);
}

template <class Visit> void each_node(Block *block, Visit visit) {
    for (Node *node : block->nodes()) {
        for (Block *inner : node->blocks()) each_node(inner, visit);
        visit(node);
    }
}

// Input of `node` that says whether it trains, as batch norm, dropout and recurrent layers have one; null without.
Value *mode_of(Node *node, size_t &index) {
    const auto *schema = node->maybeSchema();
    if (schema == nullptr) return nullptr;
    for (index = 0; index < schema->arguments().size() && index < node->inputs().size(); ++index) {
        const auto &name = schema->arguments()[index].name();
        if (name == "train" || name == "training") return node->input(index);
    }
    return nullptr;
}

bool is_none(const Value *value) {
    const auto constant = toIValue(value);
    return constant && constant->isNone();
}

// Replaces all calls of functions and children by what they do. A call of Inline goes one level down if the executor's optimizer
// is off, and else brings graphs along that were optimized.
void inline_all(Graph &graph) {
    const GraphOptimizerEnabledGuard off(false);
    const auto count = [&] {
        size_t nodes = 0;
        each_node(graph.block(), [&](Node *) { ++nodes; });
        return nodes;
    };
    for (size_t before = 0; before != count();) {
        before = count();
        Inline(graph);
    }
}

// Reads the facts of the graph of forward, gives a trace its mode back, and puts hpml's batch norm in.
void prepare(Script &script) {
    const auto graph = toGraphFunction(script.module.get_method("forward").function()).graph();
    inline_all(*graph);
    const auto batch_norm_name = Symbol::fromQualString("aten::batch_norm"), own = Symbol::fromQualString("hpml::batch_norm");
    std::vector<Node *> norms;
    std::vector<std::pair<Node *, size_t>> baked;
    auto &facts = script.facts;
    each_node(graph->block(), [&](Node *node) {
        const std::string kind = node->kind().toQualString();
        if (kind == "prim::GetAttr" && node->s(attr::name) == "training") facts |= READS_MODE;
        if (kind == "prim::CreateObject" || kind == "prim::Enter") {
            const auto type = kind == "prim::Enter" ? node->input(0)->type() : node->output()->type();
            if (type->str().find("autocast") != std::string::npos) facts |= AUTOCAST;
        }
        if (node->kind() == batch_norm_name) norms.push_back(node);
        if (kind == "aten::batch_norm" && is_none(node->input(3))) return; // without statistics it never tests
        size_t index = 0;
        Value *mode = mode_of(node, index);
        if (mode == nullptr) return;
        if (const auto constant = constant_as<bool>(mode)) {
            facts |= *constant ? BAKED_TRAINING : BAKED_TEST;
            if (*constant) baked.emplace_back(node, index);
        }
    });
    if (!norms.empty()) facts |= BATCH_NORM;

    if ((facts & READS_MODE) == 0 && (facts & BAKED_TRAINING) != 0) {
        const WithInsertPoint before(*graph->nodes().begin());
        Value *training = graph->insertGetAttr(graph->inputs().at(0), "training");
        for (const auto &[node, index] : baked) node->replaceInput(index, training);
    }
    for (Node *node : norms) {
        Node *other = graph->create(own, node->inputs());
        other->setSourceRange(node->sourceRange());
        other->output()->copyMetadata(node->output());
        other->insertBefore(node);
        node->output()->replaceAllUsesWith(other->output());
        node->destroy();
    }
}

Script &loaded(void *pointer) { return *static_cast<Script *>(pointer); }
const Slot &slot(void *pointer, size_t index) { return loaded(pointer).slots.at(index); }
} // namespace

// Loads a module onto the CPU, with the text of the file `description` in its archive. Null: it has failed.
extern "C" void *hpml_script_load(const char *path, const char *description) noexcept {
    return guarded(static_cast<void *>(nullptr), [&]() -> void * {
        register_batch_norm();
        auto made = std::make_unique<Script>();
        ExtraFilesMap extra{{description, ""}};
        made->module = load(path, at::Device(at::kCPU), extra);
        made->description = extra[description];
        std::unordered_map<const void *, size_t> seen;
        collect(made->module, "", *made, seen);
        if (!made->module.find_method("forward")) throw std::runtime_error("it has no method forward");
        prepare(*made);
        return made.release();
    });
}

extern "C" void hpml_script_free(void *pointer) noexcept { delete static_cast<Script *>(pointer); }
extern "C" const char *hpml_script_description(void *pointer) noexcept { return loaded(pointer).description.c_str(); }
extern "C" uint32_t hpml_script_facts(void *pointer) noexcept { return loaded(pointer).facts; }
extern "C" size_t hpml_script_slots(void *pointer) noexcept { return loaded(pointer).slots.size(); }
extern "C" const char *hpml_script_name(void *pointer, size_t index) noexcept { return slot(pointer, index).name.c_str(); }
extern "C" bool hpml_script_is_parameter(void *pointer, size_t index) noexcept { return slot(pointer, index).is_parameter; }
extern "C" size_t hpml_script_first(void *pointer, size_t index) noexcept { return slot(pointer, index).first; }
// The module's own tensor, not a copy: what is done to it, the module sees.
extern "C" void *hpml_script_tensor(void *pointer, size_t index) noexcept { return new at::Tensor(slot(pointer, index).tensor); }

// Sets the mode of the module and all its children.
extern "C" bool hpml_script_train(void *pointer, bool on) noexcept {
    return guarded(false, [&] {
        loaded(pointer).module.train(on);
        return true;
    });
}

// Output of forward, without the optimizations of the graph's executor on this thread, so that values and the order of the
// gradients are those of PyTorch's modules. Null: it has failed, or its output is no tensor.
extern "C" void *hpml_script_forward(void *pointer, const void *input, double momentum, decltype(BatchNormRule::compute) compute,
                                     const void *context) noexcept {
    return guarded(static_cast<void *>(nullptr), [&]() -> void * {
        setGraphExecutorOptimize(false);
        struct Ruled {
            explicit Ruled(BatchNormRule now) { rule = now; }
            ~Ruled() { rule = BatchNormRule(); }
        } const ruled({momentum, compute, context});
        const auto output = loaded(pointer).module.forward({*static_cast<const at::Tensor *>(input)});
        if (!output.isTensor()) {
            throw std::runtime_error("forward returns " + output.type()->repr_str() + " instead of a tensor of logits");
        }
        return new at::Tensor(output.toTensor());
    });
}

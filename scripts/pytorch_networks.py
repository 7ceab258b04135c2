"""hpml's networks as PyTorch modules, with the parameter names of hpml's checkpoints and the initial values that hpml draws from
the same seed. For parity.py, the peers of the benches and the fixtures of the tests.

  build("resnet50", image=(3, 224, 224), classes=1000, stem="imagenet")
  build("gpt2", length=1024, vocabulary=50257)

ResNets with stem="imagenet" and vit repeat torchvision's modules, gpt2 nanoGPT's (github.com/karpathy/nanoGPT, model.py) with
GELU by tanh; tests/fixtures/networks.py compares them with torchvision where that is installed."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Net(nn.Module):
    """Two convolutions and three linear layers, 61,770 parameters on CIFAR-10. Input [n, c, h, w], output [n, classes]."""

    def __init__(self, image=(3, 32, 32), classes=10, bias=False):
        super().__init__()
        channels, *sides = image
        self.conv1 = nn.Conv2d(channels, 6, 5, bias=False)
        self.conv2 = nn.Conv2d(6, 16, 5, bias=False)
        height, width = [((side - 4) // 2 - 4) // 2 for side in sides]
        self.fc1 = nn.Linear(16 * height * width, 120, bias=False)
        self.fc2 = nn.Linear(120, 84, bias=False)
        self.fc3 = nn.Linear(84, classes, bias=bias)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


def shortcut(inputs, outputs, stride):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two or, as a bottleneck, three convolutions and a shortcut, named `shortcut` or, as in torchvision, `downsample`."""

    def __init__(self, inputs, width, stride, bottleneck, name):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        first = (1, 1, 0) if bottleneck else (3, stride, 1)
        second = (3, stride, 1) if bottleneck else (3, 1, 1)
        changes = stride != 1 or inputs != outputs
        # torchvision makes the shortcut before its block.
        other = shortcut(inputs, outputs, stride) if changes and name == "downsample" else None
        self.conv1 = nn.Conv2d(inputs, width, *first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, *second, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.bottleneck, self.other = bottleneck, name if changes else None
        if bottleneck:
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        if changes:
            setattr(self, name, other or shortcut(inputs, outputs, stride))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (getattr(self, self.other)(x) if self.other else x))


class ResNet(nn.Module):
    """ResNet. stem="cifar": 3x3 stem without max-pool, PyTorch's default initial values; "imagenet": torchvision's."""

    BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

    def __init__(self, layers, image=(3, 32, 32), classes=10, width=64, stem=None):
        super().__init__()
        stem = stem or ("cifar" if max(image[1:]) <= 64 else "imagenet")
        imagenet, bottleneck = stem == "imagenet", layers >= 50
        self.conv1 = nn.Conv2d(image[0], width, *((7, 2, 3) if imagenet else (3, 1, 1)), bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()
        inputs = width
        for index, count in enumerate(self.BLOCKS[layers]):
            blocks = []
            for number in range(count):
                stride = 2 if index > 0 and number == 0 else 1
                name = "downsample" if imagenet else "shortcut"
                blocks.append(Block(inputs, width << index, stride, bottleneck, name))
                inputs = (width << index) * (4 if bottleneck else 1)
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
        self.head = "fc" if imagenet else "linear"
        setattr(self, self.head, nn.Linear(inputs, classes))
        for module in self.modules() if imagenet else []:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return getattr(self, self.head)(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ResNet18(ResNet):
    """CIFAR's ResNet-18; 11,173,962 parameters at width 64. Input [n, 3, 32, 32], output [n, 10]."""

    def __init__(self, width=64, **sizes):
        super().__init__(18, width=width, **sizes)


class EncoderBlock(nn.Module):
    def __init__(self, width, heads, hidden, dropout):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        layers = nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        self.mlp = nn.Sequential(*layers)
        for layer in (self.mlp[0], self.mlp[3]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x):
        y = self.ln_1(x)
        # Contiguous, so that dropout draws in the order of [n, t, width]; nn.MultiheadAttention leaves it transposed in memory.
        y = self.self_attention(y, y, y, need_weights=False)[0].contiguous()
        x = self.dropout(y) + x
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    def __init__(self, length, width, depth, heads, hidden, dropout):
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, length, width).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)
        blocks = {f"encoder_layer_{index}": EncoderBlock(width, heads, hidden, dropout) for index in range(depth)}
        self.layers = nn.Sequential()
        for name, block in blocks.items():
            self.layers.add_module(name, block)
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        return self.ln(self.layers(self.dropout(x + self.pos_embedding)))


class ViT(nn.Module):
    """torchvision's VisionTransformer. Input [n, c, h, w], output [n, classes]."""

    def __init__(self, image=(3, 32, 32), classes=10, width=768, depth=12, heads=None, mlp_ratio=4, patch=None, dropout=0.0):
        super().__init__()
        channels, *sides = image
        patch = patch or (4 if max(sides) <= 64 else 16)
        self.conv_proj = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        length = sides[0] // patch * (sides[1] // patch) + 1
        self.encoder = Encoder(length, width, depth, heads or max(width // 64, 1), mlp_ratio * width, dropout)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(width, classes))
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (channels * patch * patch)))
        for zero in (self.conv_proj.bias, self.heads.head.weight, self.heads.head.bias):
            nn.init.zeros_(zero)

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        return self.heads(self.encoder(x)[:, 0])


class CausalSelfAttention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.resid_dropout, self.heads, self.dropout = nn.Dropout(dropout), heads, dropout

    def forward(self, x):
        samples, length, width = x.shape
        q, k, v = [part.view(samples, length, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(width, dim=2)]
        rate = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(samples, length, width)))


class MLP(nn.Module):
    def __init__(self, width, hidden, dropout):
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.gelu(self.c_fc(x))))


class DecoderBlock(nn.Module):
    def __init__(self, width, heads, hidden, dropout):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalSelfAttention(width, heads, dropout)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden, dropout)

    def forward(self, x):
        x = self.attn(self.ln_1(x)) + x
        return self.mlp(self.ln_2(x)) + x


class GPT2(nn.Module):
    """nanoGPT's GPT with biases. Input [n, t] token ids, output [n, t, vocabulary]."""

    def __init__(self, length, vocabulary, width=768, depth=12, heads=None, mlp_ratio=4, dropout=0.0):
        super().__init__()
        blocks = lambda: (DecoderBlock(width, heads or max(width // 64, 1), mlp_ratio * width, dropout) for _ in range(depth))
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(vocabulary, width),
            wpe=nn.Embedding(length, width),
            drop=nn.Dropout(dropout),
            h=nn.ModuleList(blocks()),
            ln_f=nn.LayerNorm(width),
        ))
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        self.apply(self.initialize)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(parameter, mean=0.0, std=0.02 / math.sqrt(2 * depth))

    @staticmethod
    def initialize(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens):
        parts = self.transformer
        x = parts.drop(parts.wte(tokens) + parts.wpe(torch.arange(tokens.shape[1])))
        for block in parts.h:
            x = block(x)
        return self.lm_head(parts.ln_f(x))


def resnet(layers):
    return lambda **sizes: ResNet(layers, **sizes)


MODELS = {"net": Net, "resnet18": ResNet18, "vit": ViT, "gpt2": GPT2}
MODELS |= {f"resnet{layers}": resnet(layers) for layers in (34, 50, 101)}


def build(name, **sizes):
    """The network `name`; `sizes` are the keys of hpml's section [model] and the form of the data: image=(c, h, w) and classes,
    or length and vocabulary."""
    return MODELS[name](**sizes)

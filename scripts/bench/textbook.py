"""The supernet and its step as a textbook writes them: what `scripts/bench/search_step.py` is measured against.

Each candidate of each edge is computed on its own and summed; every step takes all gradients. The order of work is that
of the public DARTS code (quark0/darts at f276dd3, train_search.py, architect.py): backward through the validation loss
into everything, a step of the alphas, backward through the training loss into everything, a step of the weights. Stem
and head are those of the network it is compared with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.spaces import MultiScaleHead, Space

Loss = Callable[[Tensor, Tensor], Tensor]


class Zero(nn.Module):
    """`none`: its output is computed and is zero."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        return x.mul(0.0) if self.stride == 1 else x[:, :, :: self.stride, :: self.stride].mul(0.0)


class FactorizedReduce(nn.Module):
    """`skip_connect` where the stride is 2: two strided convolutions, one of the shifted input."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out // 2, 1, 2, bias=False)
        self.conv2 = nn.Conv2d(c_in, c_out - c_out // 2, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        x = F.relu(x)
        return self.bn(torch.cat([self.conv1(x), self.conv2(x[:, :, 1:, 1:])], dim=1))


class ImagePool(nn.Module):
    """The mean over the image, a 1x1 convolution, BatchNorm and ReLU, the same at every place."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it."""
        return F.relu(self.bn(self.conv(F.adaptive_avg_pool2d(x, 1)))).expand_as(x)


class GridPool(nn.Module):
    """Means over the cells of a grid, a 1x1 convolution and BatchNorm, resized to the size of the map."""

    def __init__(self, c: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv, self.bn = nn.Conv2d(c, c, 1, bias=False), nn.BatchNorm2d(c, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute it: the grid divides the map."""
        pooled = F.avg_pool2d(x, (x.shape[2] // self.grid, x.shape[3] // self.grid))
        return F.interpolate(self.bn(self.conv(pooled)), size=x.shape[2:], mode="bilinear", align_corners=False)


def depthwise_separable(c: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    """Return ReLU, depthwise and 1x1 convolution, and BatchNorm."""
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(c, c, kernel, stride, padding, dilation, groups=c, bias=False),
        nn.Conv2d(c, c, 1, bias=False),
        nn.BatchNorm2d(c, affine=False),
    ]


def candidate(name: str, c: int, stride: int) -> nn.Module:
    """Return the candidate of a name."""
    if name == "none":
        return Zero(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c)
    if name == "max_pool_3x3":
        return nn.Sequential(nn.MaxPool2d(3, stride, 1), nn.BatchNorm2d(c, affine=False))
    if name == "avg_pool_3x3":
        return nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), nn.BatchNorm2d(c, affine=False))
    if name == "image_pool":
        return nn.Sequential(nn.ReLU(), ImagePool(c))
    if name.startswith("grid_pool"):
        return nn.Sequential(nn.ReLU(), GridPool(c, int(name[-1])))
    if name.startswith("dil_sep_conv_3x3_r"):
        return nn.Sequential(*depthwise_separable(c, 3, stride, int(name.removeprefix("dil_sep_conv_3x3_r"))))
    kernel = int(name[-1])
    if name.startswith(("atrous", "conv")):
        rate = 2 if name.startswith("atrous") else 1
        full = nn.Conv2d(c, c, kernel, stride, rate * (kernel // 2), rate, bias=False)
        return nn.Sequential(nn.ReLU(), full, nn.BatchNorm2d(c, affine=False))
    if name.startswith("dil"):
        return nn.Sequential(*depthwise_separable(c, kernel, stride, 2))
    return nn.Sequential(*depthwise_separable(c, kernel, stride, 1), *depthwise_separable(c, kernel, 1, 1))


class MixedOp(nn.Module):
    """The weighted sum of all candidates of an edge."""

    def __init__(self, options: Sequence[str], c: int, stride: int) -> None:
        super().__init__()
        self.ops = nn.ModuleList(candidate(o, c, stride) for o in options)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Compute it."""
        return sum(w * op(x) for w, op in zip(weights, self.ops, strict=True))  # type: ignore[return-value]


class Cell(nn.Module):
    """Nodes that sum an edge from each state before them, concatenated."""

    def __init__(
        self, options: Sequence[str], nodes: int, before: int, last: int, c: int, reduction: bool, after: bool
    ) -> None:
        super().__init__()
        one = nn.Sequential(nn.ReLU(), nn.Conv2d(before, c, 1, bias=False), nn.BatchNorm2d(c, affine=False))
        self.preprocess0 = FactorizedReduce(before, c) if after else one
        self.preprocess1 = nn.Sequential(nn.ReLU(), nn.Conv2d(last, c, 1, bias=False), nn.BatchNorm2d(c, affine=False))
        self.edges = edges(options, nodes, 2, c, 2 if reduction else 1)

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        """Compute it."""
        return nodes_of([self.preprocess0(s0), self.preprocess1(s1)], self.edges, weights)


def edges(options: Sequence[str], nodes: int, inputs: int, c: int, stride: int) -> nn.ModuleList:
    """Return the edges of a cell, node by node; those from its inputs have the stride."""
    strides = [stride if j < inputs else 1 for i in range(nodes) for j in range(inputs + i)]
    return nn.ModuleList(MixedOp(options, c, s) for s in strides)


def nodes_of(states: list[Tensor], mixed: nn.ModuleList, weights: Tensor) -> Tensor:
    """Return the nodes of a cell, concatenated, given its inputs."""
    inputs, edge = len(states), 0
    while edge < len(mixed):
        total: Tensor | int = 0
        for state in states:
            total = total + mixed[edge](state, weights[edge])
            edge += 1
        states = [*states, total]  # type: ignore[list-item]  # a sum of tensors
    return torch.cat(states[inputs:], dim=1)


class MultiScale(nn.Module):
    """The same head as `head`, a `hwnas.spaces.MultiScaleHead` on the last feature."""

    def __init__(self, head: nn.Module, own: MultiScaleHead) -> None:
        super().__init__()
        self.preprocess, self.classifier = copy.deepcopy(head.preprocess[0]), copy.deepcopy(head.classifier)  # type: ignore[index]
        self.edges = edges(own.ops, own.nodes, 1, own.channels, 1)

    def parts(self) -> list[nn.Module]:
        """Return them in the order of the head it is compared with."""
        return [self.preprocess, self.edges, self.classifier]

    def forward(self, image: Tensor, x: Tensor, weights: Tensor) -> Tensor:
        """Compute it."""
        scores = self.classifier(nodes_of([self.preprocess(F.relu(x))], self.edges, weights))
        return F.interpolate(scores, size=image.shape[2:], mode="bilinear", align_corners=False)


class Supernet(nn.Module):
    """The same network as `net`, a supernet of `space` whose cells are a stack, with the same weights."""

    def __init__(self, net: nn.Module, space: Space, alphas: dict[str, Tensor]) -> None:
        super().__init__()
        # Which logits each cell has, and which states are features.
        self.kinds, self.features = [k.name for k in net.encoder.kinds], net.encoder.taken
        self.stem0, self.stem1 = (copy.deepcopy(m) for m in (net.stem0, net.stem1))
        searched = isinstance(space.head, MultiScaleHead)
        self.head = MultiScale(net.head, space.head) if searched else copy.deepcopy(net.head)
        c, cells, after = space.scale.channels, [], False
        before = net.cells[0].preprocess0[1].conv.in_channels  # type: ignore[index, union-attr]
        last = net.cells[0].preprocess1[1].conv.in_channels  # type: ignore[index, union-attr]
        for kind in net.encoder.kinds:
            c *= kind.stride
            cells.append(Cell(kind.ops, kind.nodes, before, last, c, kind.stride == 2, after))
            before, last, after = last, kind.nodes * c, kind.stride == 2
        self.cells = nn.ModuleList(cells)
        self.alphas = nn.ParameterDict({k: nn.Parameter(v.detach().clone()) for k, v in alphas.items()})
        theirs = [p for part in (net.stem0, net.stem1, net.cells, net.head) for p in part.parameters()]  # type: ignore[union-attr]
        with torch.no_grad():
            for mine, other in zip(self.weights(), theirs, strict=True):
                mine.copy_(other)
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def weights(self) -> list[nn.Parameter]:
        """Return all but the alphas, in the order of the network it is compared with."""
        head = self.head.parts() if isinstance(self.head, MultiScale) else [self.head]
        return [p for part in (self.stem0, self.stem1, self.cells, *head) for p in part.parameters()]

    def forward(self, image: Tensor, mixture: Mapping[str, Tensor] | None = None) -> Tensor:
        """Compute it: with the softmax of its alphas, or with what is given in their place."""
        p = mixture or {k: F.softmax(a, dim=-1) for k, a in self.alphas.items()}
        s0 = self.stem0(image)
        states = [s0, self.stem1(s0)]
        for kind, cell in zip(self.kinds, self.cells, strict=True):
            states.append(cell(*states[-2:], p[kind]))
        features = [states[i] for i in self.features]
        if isinstance(self.head, MultiScale):
            return self.head(image, features[-1], p["multiscale"])
        return self.head(image, features)


class Search:
    """The two kinds of steps, first order or, with `second`, second order by finite differences."""

    def __init__(self, net: Supernet, loss: Loss, second: bool, lr: float = 0.025) -> None:
        self.net, self.loss, self.second, self.lr = net, loss, second, lr
        self.decay, self.momentum = 3e-4, 0.9
        self.w_optimizer = torch.optim.SGD(net.weights(), lr, momentum=self.momentum, weight_decay=self.decay)
        self.alpha_optimizer = torch.optim.Adam(net.alphas.parameters(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def step(self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> float:
        """Do a step of the alphas and one of the weights; return the training loss."""
        self.alpha_optimizer.zero_grad()
        if self.second:
            self._unrolled(train, val)
        else:
            self.loss(self.net(val[0]), val[1]).backward()
        self.alpha_optimizer.step()
        self.w_optimizer.zero_grad()
        loss = self.loss(self.net(train[0]), train[1])
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.weights(), 5.0)
        self.w_optimizer.step()
        return float(loss.detach())

    def _unrolled(self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> None:
        weights = self.net.weights()
        theta = torch.cat([p.detach().reshape(-1) for p in weights])
        buffers = [self.w_optimizer.state[p].get("momentum_buffer", torch.zeros_like(p)) for p in weights]
        moment = torch.cat([b.reshape(-1) for b in buffers]) * self.momentum
        grads = torch.autograd.grad(self.loss(self.net(train[0]), train[1]), weights)
        theta = theta - self.lr * (moment + torch.cat([g.reshape(-1) for g in grads]) + self.decay * theta)
        model = copy.deepcopy(self.net)
        offset = 0
        with torch.no_grad():
            for p in model.weights():
                p.copy_(theta[offset : offset + p.numel()].view_as(p))
                offset += p.numel()
        self.loss(model(val[0]), val[1]).backward()
        vector = [p.grad for p in model.weights()]
        implicit = self._hessian_vector(vector, train)  # type: ignore[arg-type]
        for mine, other, h in zip(self.net.alphas.values(), model.alphas.values(), implicit, strict=True):
            mine.grad = other.grad - self.lr * h

    def _hessian_vector(self, vector: Sequence[Tensor], train: tuple[Tensor, Tensor]) -> list[Tensor]:
        eps = 0.01 / torch.cat([v.reshape(-1) for v in vector]).norm()
        ends = []
        for shift in (eps, -2 * eps, eps):
            with torch.no_grad():
                for p, v in zip(self.net.weights(), vector, strict=True):
                    p.add_(shift * v)
            if len(ends) < 2:
                loss = self.loss(self.net(train[0]), train[1])
                ends.append(torch.autograd.grad(loss, list(self.net.alphas.values())))
        return [(a - b) / (2 * eps) for a, b in zip(*ends, strict=True)]


class JointSearch:
    """Steps of SNAS and GAS: alphas and weights learn from one loss, ops are sampled by the Gumbel-softmax."""

    def __init__(self, net: Supernet, logits: nn.Module, loss: Loss, temperature: float) -> None:
        self.net, self.logits, self.loss, self.temperature = net, logits, loss, temperature
        self.w_optimizer = torch.optim.SGD(net.weights(), 0.025, momentum=0.9, weight_decay=3e-4)
        self.alpha_optimizer = torch.optim.Adam(logits.parameters(), 3e-4, betas=(0.5, 0.999), weight_decay=1e-3)

    def step(self, train: tuple[Tensor, Tensor]) -> float:
        """Do a step of both; return the loss."""
        self.alpha_optimizer.zero_grad()
        self.w_optimizer.zero_grad()
        sample = {k: F.gumbel_softmax(a, self.temperature) for k, a in self.logits().items()}
        loss = self.loss(self.net(train[0], sample), train[1])
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.weights(), 5.0)
        self.w_optimizer.step()
        self.alpha_optimizer.step()
        return float(loss.detach())

"""Small modules whose control flow depends on data, one per construct and combination, with inputs that take every arm."""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

CASES: dict[str, tuple[Any, tuple[tuple[torch.Tensor, ...], ...]]] = {}
"""By name: a function, or how to build a module; and inputs, the first of which is the example."""


def case(*inputs: tuple[torch.Tensor, ...]) -> Callable[[Any], Any]:
    def register(program: Any) -> Any:
        CASES[program.__name__] = program, inputs
        return program

    return register


def spread(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


P = torch.tensor([1.0, 2.0, 3.0])
N = -P
Z = torch.tensor([0.5, -0.25, 0.1])
XS = ((P,), (N,), (Z,), (P * 4,), (N * 4,))


@case(*XS)
def if_else(x):
    if x.sum() > 0:
        y = x * 2
    else:
        y = x - 1
    return y


@case(*XS)
def if_only(x):
    if x.sum() > 0:
        x = x * 2
    return x + 1


@case(*XS)
def elifs(x):
    s = x.sum().item()
    if s > 10:
        y = x * 3
    elif s > 1:
        y = x * 2
    elif s < -10:
        y = -x
    else:
        y = x + 1
    return y


@case(*XS)
def early_return(x):
    if x.max() > 2.5:
        return x * 2
    if x.min() < -2.5:
        return x * 3
    return x * 4


@case(*XS)
def nested_return(x):
    if x.sum() > 0:
        if x.max() > 4:
            return x * 2
        y = x + 1
    else:
        y = x - 1
    return y * 5


@case(*XS)
def ternary(x):
    y = x * 2 if x.sum() > 0 else x * 3
    return y


@case(*XS)
def ternary_num(x):
    k = 3.5 if x.sum().item() > 0 else -1.25
    return x * k


@case(*XS)
def and_or(x):
    if x.sum() > 0 and x.max() > 2 or x.min() < -4:
        return x + 1
    return x - 1


@case(*XS)
def not_(x):
    if not x.sum() > 0:
        return x + 1
    return x - 1


@case(*XS)
def chained(x):
    s = x.sum().item()
    if -3 < s < 7:
        return x + 1
    return x - 1


@case(*XS)
def any_all(x):
    if (x > 2).any() and not (x > 0).all():
        return x
    elif (x > 0).all():
        return x * 7
    return -x


@case(*XS)
def argmax_idx(x):
    i = x.argmax().item()
    if i == 2:
        return x * 2
    if i == 0:
        return x * 3
    return x * i


@case((P,), (torch.tensor([5.0, 1.0, 1.0]),), (torch.tensor([1.0, 9.0, 1.0]),))
def argmax_pick(x):
    i = int(x.argmax())
    return x[i] * 10 + i


@case(*XS)
def while_tensor(x):
    while x.abs().max() > 0.3:
        x = x / 2
    return x


@case(*XS)
def while_count(x):
    n = 0
    while x.abs().sum().item() > 1:
        x = x * 0.5
        n += 1
    return x + n


@case(*XS)
def while_count_return(x):
    n = 0
    while x.abs().sum().item() > 1:
        x = x * 0.5
        n += 1
    return x, n


@case(*XS)
def while_break(x):
    n = 0
    while True:
        x = x * 0.7
        n = n + 1
        if x.abs().max() < 0.5 or n > 5:
            break
    return x, n


@case(*XS)
def while_continue(x):
    n = 0
    k = 0
    while n < 6:
        n += 1
        if x.sum() * n > 5:
            continue
        k += n
        x = x + 0.3
    return x, k


@case((torch.tensor(0), P), (torch.tensor(1), P), (torch.tensor(5), P))
def range_item(n, x):
    for i in range(n.item()):
        x = x * 1.5 + i
    return x


@case((torch.tensor(0), P), (torch.tensor(1), P), (torch.tensor(5), P))
def range_int(n, x):
    s = torch.zeros(3)
    for i in range(1, int(n) + 1):
        s = s + x * i
    return s


@case((torch.tensor(0), P), (torch.tensor(3), P), (torch.tensor(9), P))
def range_step(n, x):
    for i in range(2, int(n), 3):
        x = x + i
    for j in range(int(n), 0, -2):
        x = x - j
    return x


@case(*XS)
def for_break(x):
    for i in range(10):
        x = x * 0.8
        if x.abs().max() < 0.7:
            break
    return x


@case(*XS)
def for_return(x):
    for i in range(10):
        x = x * 0.8
        if x.abs().max() < 0.7:
            return x + i
    return x


@case(*XS)
def for_else(x):
    for i in range(10):
        x = x * 0.9
        if x.abs().max() < 0.7:
            break
    else:
        x = x + 100
    return x


@case(*XS)
def while_else(x):
    k = 0
    while k < 4:
        x = x * 0.9
        k += 1
        if x.abs().max() < 0.7:
            break
    else:
        x = x + 100
    return x


@case(*XS)
def nested_loops(x):
    n = 0
    while x.abs().max() > 0.5:
        m = 0
        while m < 3 and x.sum().item() > -10:
            x = x * 0.8
            m += 1
            n += m
        x = x * 0.9
    return x, n


@case(*XS)
def nested_break(x):
    n = 0
    for i in range(4):
        for j in range(5):
            if (x.abs() * (j + 1)).max() > 6:
                break
            n = n + j
        if n > 10:
            break
        x = x * 0.7
    return x, n


@case(*XS)
def return_in_nested_loop(x):
    for i in range(3):
        for j in range(4):
            x = x * 0.8
            if x.abs().max() < 1.0:
                return x * (i + 1)
    return x


@case(*XS)
def number_arith(x):
    s = x.sum().item()
    t = (s * 3 - 1) / 2
    u = s // 2 + abs(s) % 3
    if t > u:
        return x * t
    return x * u


@case(*XS)
def int_arith(x):
    i = int(x.sum())
    j = i * 2 + 1
    k = j // 3 - j % 4
    if k > 2:
        return x * k
    return x + j - k


@case(*XS)
def number_merge(x):
    k = 1
    if x.sum() > 0:
        k = 5
    return x * k


@case(*XS)
def bool_merge(x):
    flag = False
    if x.sum() > 0:
        flag = True
    if flag:
        return x * 2
    return x * 3


@case(*XS)
def min_max_num(x):
    a = max(x.sum().item(), 1.0)
    b = min(int(x.sum()), 4, 3)
    return x * a + b


@case(*XS)
def tuple_state(x):
    h = (x, x * 2)
    while h[0].abs().max() > 0.4:
        h = (h[0] * 0.5, h[1] + h[0])
    return h[0] + h[1]


@case(*XS)
def dict_state(x):
    d = {"a": x, "b": x * 2}
    if x.sum() > 0:
        d["a"] = d["a"] + 1
        d["b"] = d["b"] * 3
    return d["a"] + d["b"]


@case(*XS)
def list_append_arm(x):
    outs = [x]
    if x.sum() > 0:
        outs.append(x * 2)
    else:
        outs.append(x * 3)
    return torch.stack(outs)


@case(*XS)
def list_replace(x):
    outs = [x, x + 1]
    if x.sum() > 0:
        outs[1] = x * 2
    return torch.cat(outs)


@case(*XS)
def inplace_arm(x):
    y = x.clone()
    if x.sum() > 0:
        y.add_(1)
    else:
        y *= 2
    return y


@case(*XS)
def inplace_view(x):
    y = x.clone()
    if x.sum() > 0:
        y[0] = 9.0
    y[1:] += 1
    return y


@case(*XS)
def inplace_loop(x):
    y = x.clone()
    n = 0
    while y.abs().max() > 0.6:
        y.mul_(0.5)
        y[0] += 0.1
        n += 1
    return y, n


@case(*XS)
def setitem_num(x):
    y = torch.zeros(3)
    i = x.argmax().item()
    y[i] = 5.0
    return y


@case(*XS)
def helper(x):
    def f(v):
        if v.mean() > 0:
            return v + 1
        return v * 2

    return f(x) + f(-x)


def outer_helper(v, k=2):
    if v.sum() > k:
        return v, True
    return v * k, False


@case(*XS)
def helper2(x):
    y, ok = outer_helper(x)
    z, ok2 = outer_helper(y, k=7)
    if ok and not ok2:
        return y + z
    return y - z


@case(*XS)
def cond_hop(x):
    return torch.cond(x.sum() > 0, lambda a: a.sin(), lambda a: a.cos(), (x,))


@case((torch.tensor(0), P), (torch.tensor(4), P))
def while_hop(n, x):
    from torch._higher_order_ops import while_loop

    return while_loop(lambda i, a: i < 5, lambda i, a: (i + 1, a * 2), (n, x))


@case(*XS)
def fold_static(x):
    if x.shape[0] == 3:
        x = x + 1
    for i in range(3):
        x = x * 1.1
    t = torch.tensor([1.0, 2.0])
    if t.sum() > 2:
        x = x - 1
    if x.sum() > 0:
        return x
    return -x


@case(*XS)
def lambda_closure(x):
    g = lambda v: v * 2 if v.sum() > 0 else v * 3  # noqa: E731
    return g(x)


@case(*XS)
def accumulate(x):
    total = 0.0
    for v in x:
        if v > 0:
            total += v.item()
    return x * total


@case(*XS)
def tolist(x):
    a, b, c = x.tolist()
    if a > b:
        return x * c
    return x * a


@case(*XS)
def item_float_eq(x):
    if x[0].item() == 1:
        return x
    if 2.0 == x[1].item():
        return -x
    return x * 0


@case(*XS)
def in_list(x):
    i = int(x.argmax())
    if i in (0, 1):
        return x * 2
    return x * 3


@case(*XS)
def any_builtin(x):
    if any(v > 2.5 for v in x):
        return x * 2
    if all([v > -2 for v in x.tolist()]):  # noqa: C419
        return x * 3
    return x


@case(*XS)
def while_and_index(x):
    i = 0
    while i < 3 and x[i] < 2:
        i += 1
    return x * i


@case(*XS)
def aug_num(x):
    n = x.sum().item()
    n *= 2
    n -= 1
    x = x.clone()
    x *= n
    return x


@case(*XS)
def full_num(x):
    n = x.sum().item()
    return torch.full((3,), n) + torch.clamp(x, max=n)


@case(*XS)
def where_num(x):
    n = x.mean().item()
    return torch.where(x > n, x, n)


@case(*XS)
def range_list_sum(x):
    return sum(x[i] if x[i] > 0 else x[i] * 2 for i in range(3))


@case(*XS)
def pass_arm(x):
    if x.sum() > 0:
        pass
    else:
        x = -x
    return x


@case(*XS)
def none_check(x):
    y = None
    if x.sum() > 0:
        y = x
    else:
        y = x * 2
    if y is None:
        return x
    return y


@case(*XS)
def with_nograd(x):
    with torch.no_grad():
        if x.sum() > 0:
            return x
        y = x * 3
    return y


@case(*XS)
def round_int(x):
    k = round(x.sum().item())
    if k % 4 == 2:
        return x * k
    return x - k


@case(*XS)
def collatz(x):
    n = int(x.abs().sum()) + 1
    c = 0
    while n != 1:
        if n % 2 == 0:
            n = n // 2
        else:
            n = 3 * n + 1
        c += 1
    return x + c


@case(*XS)
def shadow_undefined(x):
    if x.sum() > 0:
        t = x * 2
        y = t + 1
    else:
        y = x
    return y


@case(*XS)
def star(x):
    def f(*a, **k):
        return a[0] + k["b"] if a[0].sum() > 0 else a[0]

    return f(*(x,), b=x)


@case(*XS)
def try_finally(x):
    try:
        if x.sum() > 0:
            return x * 2
    finally:
        x = x + 1
    return x


X8 = tuple((spread(2, 8) * s,) for s in (0.1, 1.0, 3.0, -2.0))


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8, 8)

    def forward(self, x):
        if x.mean() > 0:
            return self.l(x)
        return -x


@case(*X8)
class Sub(Base):
    def forward(self, x):
        y = super().forward(x)
        if y.sum() > 0:
            y = super().forward(y * 2)
        return y


@case(*X8)
class EarlyExit(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4), nn.Linear(4, 8)])
        self.heads = nn.ModuleList([nn.Linear(16, 3), nn.Linear(8, 3), nn.Linear(4, 3)])
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        for layer, head in zip(self.layers, self.heads):
            x = torch.relu(layer(x))
            y = head(x)
            if torch.softmax(y, -1).max() > 0.5:
                return y
        return self.last(self.layers[-1](x))


@case(*X8)
class Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.s = nn.Sequential(Base(), nn.ReLU(), Base())

    def forward(self, x):
        return self.s(x)


@case(*[(a[0], torch.tensor(k)) for a in X8[:1] for k in (0, 1, 2)])
class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

    def forward(self, x, k):
        return self.e[k.item()](x) + self.e[int(k) - 1](x)


@case(*X8)
class Private(nn.Module):
    def __init__(self):
        super().__init__()
        self.__k = 3.0

    @torch.no_grad()
    def forward(self, x):
        if x.sum() > self.__k:
            return self.__twice(x)
        return x

    def __twice(self, x):
        return x * 2 if x.max() > 4 else x * 3


@dataclass
class Out:
    a: torch.Tensor
    n: int


@case(*X8)
def dataclass_state(x):
    o = Out(x, 0)
    if x.sum() > 0:
        o.a = x * 2
        o.n = 1
    while o.a.abs().max() > 1:
        o.a = o.a * 0.5
        o.n += 1
    return o.a, o.n


@case(*XS)
def nonlocal_(x):
    n = 0

    def bump():
        nonlocal n
        if x.sum() > 0:
            n += 2
        else:
            n += 1

    bump()
    bump()
    return x * n


@case(*XS)
def none_state(x):
    h = None
    for i in range(5):
        h = x if h is None else h * 0.5
        if h.abs().max() < 1:
            break
    return h


@case(*XS)
def zero_plus_tensor(x):
    s = 0
    for v in x:
        if v > 0:
            s = s + v
        else:
            s = s - v
    return s


@case(*XS)
def pop_list(x):
    st = [x, x * 2, x * 3]
    if x.sum() > 0:
        y = st.pop()
    else:
        y = st.pop(0)
    return y + st[0]


@case(*XS)
def list_of_numbers(x):
    c = [0, 0, 0]
    for v in x:
        k = 0 if v > 1 else 1 if v > -1 else 2
        c[k] += 1
    return torch.tensor(c)


@case(*XS)
def math_funcs(x):
    s = x.abs().sum().item()
    t = math.sqrt(s) + math.exp(-s) + math.floor(s)
    if math.isfinite(1.0) and t > 3:
        return x * t
    return x - t


@case(*XS)
def isinstance_(x):
    n = x.sum().item()
    if isinstance(n, float):
        return x * n
    return x


@case(*XS)
def dict_out(x):
    if x.sum() > 0:
        return {"y": x, "k": torch.tensor(1)}
    return {"y": -x, "k": torch.tensor(2)}


@case(*XS)
def partial_(x):
    def f(a, b):
        if a.sum() > b.sum():
            return a
        return b

    return functools.partial(f, x)(b=-x)


@case(*XS)
def recursion(x):
    def f(v, d):
        if d == 0:
            return v
        if v.sum() > 0:
            return f(v * 0.5, d - 1)
        return f(v + 1, d - 1)

    return f(x, 4)


@case(*XS)
def swap(x):
    a, b = x, x * 2
    if x.sum() > 0:
        a, b = b, a
    return a - b * 3


@case(*XS)
def slice_n(x):
    n = int((x > 0).sum())
    y = torch.zeros(3)
    y[:n] = x[:n]
    return y


@case(*XS)
def where_loop(x):
    mask = x.abs() > 1
    while mask.any():
        x = torch.where(mask, x * 0.5, x)
        mask = x.abs() > 1
    return x


@case(*XS)
def tensor_flag(x):
    done = torch.zeros((), dtype=torch.bool)
    n = 0
    while not done:
        x = x * 0.7
        n += 1
        done = x.abs().max() < 0.5
    return x, n


@case(*XS)
def bool_arith(x):
    n = (x.sum() > 0).item() + (x.max() > 2).item() * 2
    return x * n


@case(*XS)
def elif_pass_chain(x):
    s = x.sum()
    if s > 10:
        r = 1
    elif s > 3:
        r = 2
    elif s > 0:
        r = 3
    elif s > -3:
        r = 4
    else:
        r = 5
    if r in (1, 5):
        return x
    if r == 2:
        return x * 2
    return x * r


@case(*XS)
def while_true_return(x):
    i = 0
    while True:
        x = x * 0.8
        i += 1
        if x.abs().max() < 0.9:
            return x + i
        if i >= 7:
            return x - i


@case(*XS)
def no_second_round(x):
    n = 0
    while True:
        n += 1
        if n > 3 or x.max() > 0.5:
            break
        return x * 2.0 + n
    return x * 3.0


@case(*XS)
def no_second_round_of_a_condition(x):
    n = 0
    while n < 4 and x.min() < 0.9:
        n += 1
        if x.max() > 0.5:
            x = x + 1
            break
        if x.min() < -0.5:
            return x * 2.0 + n
        x = x - 1
        break
    return x * 3.0 + n


@case(*XS)
def returns_in_every_round(x):
    while x.min() < 0.0:
        y = x + 1
        if x.sum() > 0:
            x = y * 3
            return x
        return y - x.max()
    return x * 2


@case(*XS)
def continue_in_for(x):
    t = torch.zeros(3)
    for i in range(6):
        if x[i % 3] > 0 and i != 3:
            continue
        t = t + x * i
        if t.sum() < -30:
            break
    return t


@case(*XS)
def float_accumulate(x):
    total = 0
    n = 0
    while n < 5 and total < 6:
        total = total + x.abs().max().item()
        n += 1
    return x * total


@case(*XS)
def tuple_return_num(x):
    if x.sum() > 0:
        return x, 1, True
    return -x, 2, False


@case(*XS)
def ternary_nested(x):
    return x * (1 if x.sum() > 5 else 2 if x.sum() > 0 else 3)


@case(*XS)
def or_value(x):
    k = int(x.argmax()) or 7
    return x * k


@case(*XS)
def min_over(x):
    m = min(x.tolist())
    i = max(range(3), key=lambda j: j)
    return x - m + i


@case(*XS)
def aug_view(x):
    y = x.clone()
    v = y[1:]
    if x.sum() > 0:
        v += 1
    else:
        v *= 2
    return y


@case(*XS)
def inplace_outer_in_loop_arm(x):
    y = x.clone()
    for i in range(4):
        if y.sum() > 0:
            y.sub_(1)
        else:
            y.add_(0.75)
    return y


@case(*XS)
def ones_(x):
    n = int((x > 0).sum())
    return torch.ones(n).sum() + torch.arange(n).sum()


@case(*XS)
def long_range(x):
    s = 0.0
    for i in range(40):
        if x[i % 3] * i > 3:
            s = s + i
    return x * s


@case(*XS)
def helper_loop_return(x):
    def find(v):
        for i in range(3):
            if v[i] > 1.5:
                return i
        return -1

    i = find(x)
    if i < 0:
        return x
    return x * i + find(-x)


@case(*XS)
def comp_tern(x):
    ys = [v * 2 if v > 0 else v * 3 for v in x]
    return torch.stack(ys)


@case(*XS)
def dict_loop(x):
    st = {"h": x, "n": 0}
    while st["h"].abs().max() > 0.5:
        st["h"] = st["h"] * 0.6
        st["n"] += 1
    return st["h"], st["n"]


@case(*XS)
def while_pred_fn(x):
    def go(v):
        return v.abs().max() > 0.5

    while go(x):
        x = x * 0.5
    return x


@case(*XS)
def item_after_inplace(x):
    y = x.clone()
    a = y[0].item()
    y[0] = 100.0
    b = y[0].item()
    if a < b and a > 0.7:
        return y * a
    return y


@case(*XS)
def chained_methods(x):
    if (x > 0).any().logical_and((x < 0).any()):
        return x
    return x.abs().sum(0, keepdim=True) + x


@case(*XS)
def collect(x):
    outs = []
    for i in range(12):
        x = x * 0.8
        outs.append(x)
        if x.abs().max() < 0.9:
            break
    return torch.stack(outs)


@case(*XS)
def collect_while(x):
    outs = [x]
    k = []
    while x.abs().max() > 0.5:
        x = x * 0.7
        outs.append(x + 1)
        k.append(x.sum().item())
    return torch.stack(outs, dim=1), len(k)


@case(*XS)
class Cap(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.LSTMCell(3, 8)
        self.o = nn.Linear(8, 10)
        self.e = nn.Embedding(10, 3)

    def forward(self, x):
        x = x[None]
        stop = 0.04 * x.abs().max().item() + 0.1
        h = x.new_zeros(1, 8)
        c = x.new_zeros(1, 8)
        ws = []
        for _ in range(20):
            h, c = self.c(x, (h, c))
            w = self.o(h).argmax(dim=1)
            ws.append(w)
            if h.abs().max().item() > stop:
                break
            x = self.e(w)
        return torch.stack(ws, dim=1), h


@case(*XS)
def set_where_it_breaks(x):
    total = x.new_zeros(())
    n = 0
    while True:
        x = torch.tanh(x + 0.3)
        p = torch.sigmoid(x.mean())
        n += 1
        if n == 8 or total + p >= 0.99:
            rest = 1 - total
            break
        total = total + p
    return x * rest


@case(*XS)
def set_at_two_exits(x):
    n = 0
    while True:
        n += 1
        if x.sum() > 5:
            y, k = x * 2, 1
            break
        x = x + 1
        if n > 4:
            y, k = x - n, 2
            break
    return y * k, n


@case(*XS)
def set_or_else(x):
    for i in range(20):
        x = x * 1.5
        if x.abs().max() > 40:
            y = x - i
            break
        if x.sum() < -30:
            return x
    else:
        y = -x
    return y


@case(*XS)
def set_under_equal_conditions(x):
    big = x.sum() > 2
    if big:
        z = x.sin()
    x = x + 1
    if big:
        x = x + z
    return x


@case(*XS)
def set_in_the_first_of_many_steps(x):
    n = 0
    while n < 3 or x.sum() < 2:
        y = x + n
        x = x + 0.5
        n += 1
    return y


@case(*XS)
class AfterManyExits(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        scale = 2.0
        for n in range(2):
            for layer in self.layers:
                x = layer(x) * scale
                if x.sum() > 1.5:
                    return x, n
            if x[0] > 0:
                scale = 3.0
            x = x + 1
        last = x * scale
        for layer in self.layers:
            last = layer(last)
            if last[1] < -1:
                break
            if last[2] > 1:
                return last, 7
        if last.sum() > 0:
            last = -last
        return last, 5


@case(*XS)
def merged_and_written(x):
    y = x * 2
    if x.sum() > 0:
        y = y + 1
    if x[0] > 1:
        y += 1
    else:
        y -= 1
    for i in range(3):
        y[i] = y[i] * 2
    z = y * 1
    while z.sum() < 3:
        z = z + 1
        if z[0] > 1:
            z = z * 2
    z.mul_(2)
    return y, z


@case(*XS)
def fresh_and_written_in_steps(x):
    h = x * 0.5
    n = 0
    while n < 6 and h.abs().max() < 8:
        new = torch.tanh(h) + x
        new += 0.25
        h = new - h * 0.5
        new.mul_(2)
        h += 0.125
        n += 1
    return h, n


# --- rows at positions from data are views ---------------------------------------------------------------------------


@case(*XS)
def row_is_written(x):
    y = torch.stack([x, x + 1, x + 2])
    k = int((x > 0).sum()) - 1  # -1 where nothing is positive
    y[k].mul_(3)
    y[k][0] = 7
    row = y[x.argmax()]
    row += x
    row[1] = 5
    if x.sum() > 0:
        row -= 1
        y[0] = 2
    return y, row


@case(*XS)
def row_of_row_is_written(x):
    grid = torch.zeros(3, 3, 3)
    i, j = int(x.argmax()), int(x.argmin())
    grid[i][j] += x
    plane = grid[i]
    cell = plane[j]
    cell.add_(1)
    plane[0] = 4
    other = grid[0]
    grid[0, 0, 0] = 9 if x.sum() > 0 else 8
    return grid, plane, cell, other


@case(*XS)
def rows_of_steps_are_written(x):
    y = torch.stack([x + i for i in range(20)])
    for r in y:
        if r.sum() > 20:
            break
        r.mul_(0.5)
    n = 1
    while n < 18 and y.sum() < 300:
        before = y[n - 1]
        y[n].add_(before)
        if before.sum() > 3:
            y[n - 1] = x
        y[n + 1] -= before
        n += 1
    return y, n


@case(*XS)
def swapped_rows_are_views(x):
    y = torch.stack([x, x * 2, x - 1])
    i, j = int(x.argmax()), int(x.argmin())
    y[i], y[j] = y[j], y[i]
    return y


@case(*XS)
def state_goes_to_a_table(x):
    table = torch.zeros(20, 3)
    n = 0
    h = x * 0.25
    while n < 18 and h.norm() > 0.2:
        table[n] = h  # h.to(h.dtype) inside is h itself
        a = torch.softmax(table[: n + 1] @ h, 0)
        h = (a[:, None] * table[: n + 1]).sum(0) * 0.8
        n += 1
    if x.sum() > 0:
        y = x.float() + 1
    else:
        y = x.contiguous() - 1
    return h, n, table, y, x * 2


# --- variables of functions around -----------------------------------------------------------------------------------


@case(*XS)
def nonlocal_of_a_call_in_an_arm(x):
    n, total = 0, x

    def count(v):
        nonlocal n, total
        n += 1
        total = total + v
        return v.sum() > 0

    if x[0] > 0:
        count(x)
    y = x if count(x) and count(1 - x) or count(x + 3) else -x
    k = 0
    while k < 5 and total.sum() < 9:
        count(x + k)
        k += 1
    return y, n, total


@case(*XS)
def nonlocal_and_early_returns(x):
    scale, calls = 1.0, 0

    def outer(v):
        nonlocal calls
        k = 0

        def inner(w):
            nonlocal k, calls, scale
            k += 1
            if w.sum() > 0:
                calls += k
                scale = scale * 2
                return w * 2
            calls -= 1
            return w - 1

        r = inner(v)
        while k < 3 and r.sum() < 6:
            r = inner(r + 1)
        return r * k

    y = outer(x)
    if y.sum() > 10:
        y = outer(-x)
    return y * scale, calls


@case(*XS)
def bounds_from_the_end(x):
    k = int((x > 0).sum()) - 2
    y = torch.zeros(4)
    y[k:] = 1
    y[:k] += 2
    y[-k:3] = 9
    return x[:k].sum(), x[k:].sum(), x[-k - 1 :].sum(), y


# --- values that are something else on some paths --------------------------------------------------------------------


@case(*XS)
def none_on_some_paths(x):
    def masked(v, mask=None, scale=None):
        if mask is not None:
            v = v.masked_fill(mask, 0.0)
        return v if scale is None else v * scale

    mask = scale = None
    if x.min() < 0:
        mask = x < 0
    if x.max() > 2:
        scale = x.max()
    cache = {"a": None, "b": x}
    if x.sum() > 0:
        cache["a"] = [x * 2, x]
    y = masked(x, mask, scale=scale) + masked(x, scale=scale) + masked(x, mask)
    if cache["a"] is not None:
        return y + cache["a"][0]
    return (y if not mask_any(mask) else y + 1) * cache["b"]


def mask_any(mask):
    return mask is not None and mask.any()


@case(*XS)
def none_at_some_steps(x):
    def first_above(v, bound):
        for i in range(3):
            if v[i] > bound:
                return i
        return None

    best = best_sum = held = None
    n = 0
    while n < 8 and x.abs().sum() < 40:
        s = x.sin().sum()
        if best_sum is None or s > best_sum:
            best, best_sum = x, s
        if held is None:
            held = x * 2
        elif held.sum() > 3:
            held = None
        else:
            held = held + 1
        x = x * 1.3 + 0.1
        n += 1
    at = first_above(x, 1)
    y = x * -1 if at is None else x + x[at]
    return y, best if best is not None else x * 0, y if held is None else held * y, n


@case(*XS)
class NamedParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"big": nn.Linear(3, 3), "small": nn.Linear(3, 3), "none": nn.Identity()})

    def forward(self, x):
        mode = "none"
        if x.sum() > 5:
            mode = "big"
        elif x.sum() < -5:
            mode = "small"
        y = self.parts[mode](x)
        if mode in ("big", "small"):
            y = y * 2
        if mode == "big" or mode.startswith("n"):
            y = y + len(mode)
        f = torch.relu if x[0] > 0 else (torch.tanh if mode != "small" else torch.sigmoid)
        layer = self.parts["big"] if x[1] > 0 else self.parts["small"]
        table = {"big": x, "small": x * 3, "none": -x}
        table[mode] = x * 10
        act = None
        if x[0] > 0:
            act = torch.relu
        elif x[0] < -2:
            act = torch.tanh
        y = y + table["big"] + table["none"] * (2 if act is torch.relu else 3)
        return f(y), nn.functional.linear(x, layer.weight, layer.bias)


@case(*XS)
def number_or_tensor(x):
    best, total, n, done = -math.inf, 0, 0, False
    for v in x:
        if v > best:
            best = v
    while n < 9 and total < 6:
        total = total + x.abs().sum()
        n += 1
    loss = x.sum()
    if (x > 0).any():
        loss = 0.0
    for _ in range(3):
        if done:
            break
        done = (x > 2).any()
        x = x + 1
    return x * best, total * x, n, x * loss, done


@case(*XS)
def identity(x):
    b = (x.sum() > 0).item()
    n = int(x.argmax())
    y = x * 2 if b is True else x
    if b is not False and n is not None:
        y = y + 1
    if n.__class__ is int and type(b) is bool:
        y = y - 3
    key = x
    if x[0] > 0:
        key = x + 1
    value = x * 3
    return y if key is value or key is not key else y * 2


@case(*XS)
def compared_by_elements(x):
    k = int(x.argmax())
    above, below = x[x > 0], x[x <= 0]
    y = x
    if above.shape == below.shape or (k, 1) == (0, 1):
        y = y * 2
    if [k, x.dim()] != [2, 1] and above.shape != x.shape:
        y = y + 1
    return y


@case(*XS)
def bound_in_the_first_operand(x):
    n = 0
    while (s := x.abs().sum().item()) > 1 and n < 20:
        x = x * 0.5
        n += 1
    if (m := x.max()) > 0.2 or n < 3:
        return x * m, n, s > 0.5
    return x - m, n, s > 0.5


# --- objects that are another one on some paths ----------------------------------------------------------------------


@case(*XS)
def contents_at_the_end_of_an_arm(x):
    items = [x, x]
    other = items
    if x.sum() > 0:
        other = [x * 2, x]
    else:
        other[0] = x * 3
        items[1] = x * 5
    if x[0] > 1:
        made = [x]
        one = two = made
    else:
        made = [x * 2]
        one = two = made
    one[0] = x * 7
    outs = []
    if x[1] > 0:
        outs = [x * 2]
    else:
        outs = [x]
    outs.append(x * 3)
    return items[0], items[1], other[0], other[1], two[0], torch.stack(outs)


# --- lists whose length is data --------------------------------------------------------------------------------------


@case(*XS)
def appended_in_some_arms(x):
    kept, rest, pieces = [], [], [x[:1]]
    for v in x:
        if v > 0.2:
            kept.append(v * 2)
            if v > 1:
                kept.append(v * 3)
        else:
            rest.append(v)
    for v in x.split(1):
        if v.sum() > 0:
            pieces.append(v)
    pieces.append(x[1:2])
    y = x if kept else -x
    for v in kept:
        if v > 5:
            break
        y = y + v
    doubled = [v * 2 for v in rest]
    for i, v in enumerate(x):
        if v in (1.0, -1.0):
            y = y + len([v for v in kept if v > 3])
    y = y + sum(doubled)
    if not rest or len(kept) > len(rest):
        y = y + 1
    return y, len(kept), torch.cat(pieces), torch.stack(pieces, dim=1)


@case(*XS)
def appended_after_the_exit(x):
    words, more = [], []
    n = 0
    while n < 12:
        x = x * 0.8 + 0.1
        if x.abs().max() < 1:
            break
        words.append(x)
        n += 1
    for k in range(9):
        x = x - 1
        more.append(x)
        if x.sum() < -6:
            break
        words.append(x * k)
    y = torch.stack(words).sum(0) if words else x * 7
    for k, w in enumerate(reversed(more)):
        y = y * 0.5 + w * k
    return y, len(words), len(more), more[0]


@case(*XS)
def comprehensions_over_data(x):
    n = int((x > 0).sum())
    rows = torch.stack([x * i for i in range(n + 1)])
    shifted = [r + 1 for r in rows]
    big = [v * 2 for i, v in enumerate(x) if v > 0 if i != 1]
    near = any(v > 2 for v in x if v < 3), all(v > 0 for v in x if v != 2), any(i == 2 for i in range(n))
    y = x + sum(x * i for i in range(n))
    k = 0
    while sum(1 for v in y if v > 1) > 0 and k < 6:
        y = y * 0.6
        k += 1
    return rows, torch.stack(shifted).sum(), len(big), y + sum(big), *near, k, sum(i * i for i in range(n))


@case(*XS)
class KeptLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.named = nn.ModuleDict({str(k): nn.Linear(3, 3) for k in range(3)})

    def forward(self, x):
        outs = [layer(x) for layer in self.layers]
        mask = None
        if x.sum() > 0:
            mask = x * 2
        kept = [o if mask is None else o + mask for o in outs if o.sum() > 0]
        parts = {0: self.layers[0], 5: torch.relu, 2: self.named["1"]}
        k = int(x.argmax())
        y = parts.get(k * 2, torch.tanh)(x) if k != 1 else parts[k + 4](x)
        return torch.stack(kept).mean(0) if kept else y, y, len(kept)


@case(*XS)
class DepthFromData(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.block = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.ReLU())

    def forward(self, x):
        k = int((x > 0).sum())
        y = x
        for layer in self.layers[:k]:
            y = torch.tanh(layer(y))
        for i, layer in enumerate(self.block[1:k]):
            y = layer(y) + i
        s = x * 0
        for v in [x, x * 2, x * 3][: k - 1]:
            s = s + v
        for layer, other in zip(self.layers[:k], self.block):
            y = layer(y)
            if y.sum() > 3:
                break
            y = other(y)
        with torch.inference_mode():
            kept = y.data
            if x[0] > 0:
                kept *= 2
        return y, s


@case(*XS)
def sizes_on_each_path(x):
    if (x > 2).any():
        y = x[x > 1]
    elif x.sum() > 0:
        y = torch.cat([x, x[x > 0]])
    else:
        y = x[:0]
    words, word = [], int(x.argmax())
    for _ in range(9):
        word = (word * 5 + 2) % 7
        if word == 3:
            break
        words.append(word)
    return y, y.shape[0], x if y.numel() == 0 else x + y.max(), torch.tensor(words)


@case(*XS)
def merged_written(x):
    y = x * 2
    z = y
    if x.sum() > 0:
        z = y + 1
    z += 1
    return y + z


@case(*XS)
def source_written(x):
    y = x * 2
    z = y
    if x.sum() > 0:
        z = y + 1
    y += 1
    return z, y


@case(*XS)
def written_in_the_step_after(x):
    w, v = x * 1, x * 2
    while w.sum() < 5:
        w += 1
        if w[0] > 2:
            w = v
            x = x + 1
    return w, v


@case(*XS)
def chosen_element_written(x):
    items = [x * 1, x * 2, x * 3]
    items[int(x.argmax())].add_(1)
    return items


@case(*XS)
def chosen_before_the_elements_are_written(x):
    items = [x * 1, x * 2, x * 3]
    v = items[x.argmax() - 2]
    items[1][0] = 7.0
    w = items[int(x.argmin())]
    v += 1
    w *= 2
    return items, v, w


@case(*XS)
def input_is_written_on_one_path(x):
    y = x * 2
    if x.sum() > 0:
        y = x
    y[0] = 5.0
    return x + y


@case(*XS, (Z * 0.5,))
def grows_until_break(x):
    y = x * 0.5
    for _ in range(6):
        y = torch.cat([y, y[-1:] * 1.5 + 0.1])
        if y.sum() > 3:
            break
    return y


@case(*XS, (Z * 0.5,))
def grows_up_to_a_size(x):
    y = x * 0.5
    while y.shape[0] < 9 and y.sum() < 3:
        y = torch.cat([y, y[-1:] * 1.5 + 0.1])
    return y, y.shape[0]


@case(*XS, (Z * 0.5,))
def grows_for_a_count(x):
    y = x * 0.5
    n = 0
    while n < 5 and y.sum() < 3:
        y = torch.cat([y, y[-2:] * 1.5 + 0.1])
        n += 1
    return y, n


@case(*XS, (Z * 0.5,))
def grows_until_one_of_two_breaks(x):
    y = x[None] * 0.5
    n = 0
    while True:
        y = torch.cat([y, (y[-1:] * 1.5 + 0.1)])
        n += 1
        if n >= 7 or y.sum() > 3:
            break
    return y.mean(0), y


@case(*XS, (Z * 0.5,))
def two_grow_together(x):
    y = x * 0.5
    z = torch.zeros(2, 1)
    while len(y) < 9 and y.sum() < 3:
        y = torch.cat([y, y.mean()[None] + 0.1])
        z = torch.cat([z, y[-2:, None]], dim=1)
    return z, y


@case(*XS, (Z * 0.5,))
def grows_in_front_and_is_written(x):
    y = x * 0.5
    k = 0
    while k < 4 and y.sum() < 3:
        y = torch.cat([y[:1] * 2, y])
        y[0] = y.mean()
        k = k + 1
    return y


@case(*XS, (Z * 0.5,))
def appends_a_token_per_step(x):
    w = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.3, -0.2], [-0.3, 0.2, 0.9]])
    ids = torch.tensor([0, 1])
    h = x
    for _ in range(8):
        h = torch.tanh(h @ w)
        t = h.argmax()
        ids = torch.cat([ids, t[None]])
        if t == 2:
            break
    return ids


@case(*XS, (Z * 0.5,))
def break_before_it_grows(x):
    y = x * 0.5
    for _ in range(6):
        t = y[-1:] * 1.5 + 0.1
        if t.sum() > 1 or y.sum() < -4:
            break
        y = torch.cat([y, t])
    return y, y.shape[0]


@case(*XS, (Z * 0.5,))
def stop_token_is_not_kept(x):
    w = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.3, -0.2], [-0.3, 0.2, 0.9]])
    ids = torch.tensor([[0, 1]])
    h = x
    while ids.shape[1] < 9:
        h = torch.tanh(h @ w)
        t = h.argmax()
        if t == 2:
            break
        ids = torch.cat([ids, t[None, None]], dim=1)
    return ids


@case(*XS, (Z * 0.5,))
def grows_in_some_steps(x):
    kept = x[:1]
    for k in range(20):
        t = torch.cos(x.sum() * 3 + kept.mean() + k)
        if t > 0.2:
            kept = torch.cat([kept, t[None]])
        if t < -0.95:
            kept = torch.cat([kept, t[None], -t[None]])
    return kept


@case(*XS, (Z * 0.5,))
def grows_in_some_steps_up_to_a_size(x):
    kept = x[x > 0][:1]
    kept = torch.cat([x[:1], kept])
    k = 0
    while kept.shape[0] < 5 and k < 30:
        k += 1
        t = torch.sin(x.sum() * k)
        if t > 0.2:
            kept = torch.cat([kept, t[None], t[None] * 2])
    return kept, k


@case(*XS, (Z * 0.5,))
def one_grows_always_and_one_sometimes(x):
    every, some = x[:1], x[:2]
    for k in range(9):
        t = every[-1:] * 0.7 + 0.3
        every = torch.cat([every, t])
        if some.sum() > 2:
            break
        if t > 0.5:
            some = torch.cat([some, t])
    return every, some


@case(*XS, (Z * 0.5,))
def size_of_what_grows_as_a_float(x):
    y = x[:1]
    for _ in range(7):
        if y.sum() > 6:
            break
        n = float(y.size(0))
        y = torch.cat([y, x[:1].abs() + y.sum() / n + 1 / n])
    return y, float(y.shape[0]) * 0.5, int(y.shape[0] / 2)


@case(*XS, (Z * 0.5,))
def arithmetic_of_a_size(x):
    y = x[x > 0]
    n = len(y)
    q, r = divmod(n, 2)
    z = y * math.sqrt(n + 1) + n**0.5 + q - r + abs(n - 3) + round(n / 2) + math.exp(-n) + [5, 6, 7, 8][n]
    if n / 2 > 0.75:
        z = z + max(n, 2) + min(n, 1)
    return z * (n + 1) ** -1


PAIRS = tuple(
    (torch.tensor(a), torch.tensor(b))
    for a, b in (
        ([1.0, 2.0, -0.5, 3.0], [1.0, 0.0, -1.0, 2.0]),
        ([3.0, 1.0, 2.0, 1.0], [0.0, 1.0, 0.0, 1.0]),
        ([-1.0, 0.0, -4.0, 0.0], [1.0, 1.0, 1.0, 1.0]),
        ([-1.0, -2.0, -4.0, 5.0], [2.0, 2.0, 2.0, 2.0]),
        ([9.0, -2.0, 14.0, 5.0], [0.0, 2.0, -2.0, 1.0]),
    )
)


@case(*PAIRS)
def mask_used_twice(x, y):
    m = x > 0
    return x[m] + y[m]


@case(*PAIRS)
def mask_reads_and_writes(x, y):
    m = x > 0
    out = torch.zeros(4)
    out[m] = x[m] * 2 + y[m]
    return out


@case(*PAIRS)
def mask_of_rows_and_a_product(x, y):
    m = x > 0
    a = torch.stack([x, y, x * y], 1)
    b = a[m] @ torch.tensor([[1.0, 0.5], [-0.5, 0.25], [0.75, -1.0]])
    out = torch.zeros(4, 2)
    out[m] = b
    return out, b


@case(*PAIRS)
def mask_computed_twice(x, y):
    return x[x > 0] + y[x > 0]


@case(*PAIRS)
def mask_of_each_expert(x, y):
    out = torch.zeros(4)
    for e in range(2):
        m = (x * 2).long() % 2 == e
        if m.any():
            out[m] += x[m] * (e + 1) + y[m]
    return out


@case(*PAIRS)
def positions_found_twice(x, y):
    i = (x > 0).nonzero()[:, 0]
    j = torch.where(x > 0)[0]
    return x[i] + y[j]


@case(*PAIRS)
def mask_before_and_in_a_branch(x, y):
    m = x > 0
    a = x[m]
    if y.sum() > 2:
        a = a + y[m]
    return a, y[m] * a


@case(*PAIRS)
def mask_before_and_in_a_loop(x, y):
    m = x > 0
    a = x[m]
    n = 0
    while a.sum() < 20 and n < 3:
        a = a + y[m]
        n += 1
    return a


@case(*PAIRS)
def mask_of_each_step(x, y):
    x, n = x * 1, 0
    while x.sum() < 20 and n < 3:
        m = x > 0
        x[m] = x[m] + y[m].abs()
        n += 1
    return x


@case(*PAIRS)
def mask_written_between(x, y):
    m = x > 0
    a = x[m]
    m[0] = True
    b = y[m]
    return a, b, a.sum() + b.sum()


@case(*PAIRS)
def mask_and_its_complement(x, y):
    m = x > 0
    n = ~m
    out = torch.empty(4)
    out[m] = torch.tanh(x[m] * y[m])
    out[n] = x[n] - y[n]
    return out


@case(*PAIRS)
def mask_of_attention(x, y):
    m = x > -9
    a = torch.stack([x, y, x * y], 1)[m]
    p = torch.softmax(a @ a.T, -1) @ a
    o = torch.zeros(4, 3)
    o[m] = p
    return o


@case(*XS)
def constant_written_on_one_path(x):
    t = torch.tensor([1.0, 2.0, 3.0])
    m = t if x.sum() > 0 else x * 0
    m += 1
    return x * 2 if t[0] > 1.5 else x


@case(*XS)
def mask_of_what_is_written_by_another_name(x):
    y = x * 1
    z = y if x.sum() > 0 else x * 0
    a = x[y > 0]
    z -= 1
    b = x[y > 0]
    return a, b, a.sum() * b.sum()


@case(*XS)
def mask_before_and_after_such_a_write(x):
    y = x * 1
    m2 = y > 0
    z = y if x.sum() > 0 else x * 0
    z -= 1
    b = x[y > 0]
    c = x[m2]
    return c, b


@case(*XS)
def mask_written_by_another_name(x):
    m = x > 0
    n = m if x.sum() > 0 else x > 1
    a = x[m]
    n[0] = True
    return a, x[m], x[n]


@case(*XS)
def mask_written_in_a_loop(x):
    m = x > 0
    n, s = 0, x.sum()
    while n < 2 and x.sum() < 5:
        s = s + x[m].sum()
        m.logical_not_()
        n += 1
    return x[m], s


@case(*XS)
def sorted_ends(x):
    values = sorted(x.tolist())
    return x * values[0], values[-1], values


@case(*XS)
def sorted_down(x):
    return sorted([x.sum().item(), 0.5, x.max().item(), x[0].item()], reverse=True)


@case(*XS)
def sorted_in_place(x):
    values = x.tolist()
    values.sort(reverse=True)
    total, n = 0.0, 0
    for v in values:
        total += abs(v)
        n += 1
        if total > 4:
            break
    return n, total


@case(*XS)
def sorted_by_a_key(x):
    found = sorted([(x[i], x * i, i) for i in range(3)], key=lambda c: c[0].item(), reverse=True)
    return [c[1] for c in found[:2]], found[0][2], found[0][0]


@case(*XS)
def sorted_positions(x):
    order = sorted(range(3), key=lambda i: x[i])
    return x[order[0]], order


@case(*XS)
def sorted_of_two_types(x):
    middle = sorted([(x * 2).sum().item(), 1, x[0].item()])[1]
    return x + 1 if middle > 1 else x


class Box:
    def __init__(self, v: torch.Tensor) -> None:
        self.v = v


class Table(dict[str, int]):
    pass


def _halved_while_large(v: torch.Tensor, steps: int) -> torch.Tensor:
    if steps == 0 or v.abs().sum() < 1:
        return v
    return _halved_while_large(v * 0.5, steps - 1)


@case(*XS)
def recursion_of_a_global_function(x):
    return _halved_while_large(x, 4)


@case(*XS)
def attributes_by_name(x):
    box = Box(x)
    if x.sum() > 0:
        setattr(box, "v", x * 3)  # noqa: B010
    if x.max() > 2:
        object.__setattr__(box, "v", x + 1)
    return box.v


@case(*XS)
def heap_in_an_arm(x):
    items = [3, 1, 2]
    if x.sum() > 0:
        heapq.heapify(items)
    return x * items[0]


@case(*XS)
def iterator_of_an_arm(x):
    for row in x:
        if row > 0:
            numbers = iter([2, 3])
            x = x * next(numbers) + next(numbers)
    return x


@case(*XS)
def dict_with_equal_keys(x):
    table = Table(a=1)
    if x.sum() > 0:
        table["a"] = 3
    return x * table["a"] if table and table != {} else x


@case(*XS)
def division_beside_another_handler(x):
    try:
        y = x * (1 / x.sum().item())
    except KeyError:
        y = x
    try:
        share = 4 / int(x.abs().sum() + 1)
    finally:
        y = y + 1
    return y * share


@case(*XS)
def full_of_any_sign(x):
    n = int(x.sum())
    return torch.full((2,), n), torch.full((n * n % 3, 2), -n, dtype=torch.float64), torch.full((2,), x.sum().item()), torch.full((1,), n > 0)


WHOLE = tuple((torch.tensor([float(v), 1, 0, 0, 0.5]),) for v in (-3, -1, 0, 2, -6, -20, 7, 1))


@case(*WHOLE)
def slices_at_any_number(x):
    n = int(x.sum())
    y = x.clone()
    y[n:] = 7
    return x.flatten()[n:].sum(), x[:n].sum(), x[n : n + 3] * 1, y


@case(*WHOLE)
def slices_at_what_steps_count_down(x):
    n, s = 2, x.sum() * 0
    while n > -4 and s < 50:
        n = n - 1
        s = s + x[:n].sum()
    return s


@case(*WHOLE)
def slices_at_what_steps_count_up(x):
    n, s = 0, x.sum() * 0
    for i in range(int(x.abs().sum())):
        s = s + x[:i].sum()
    while n < 3 and s < 50:
        n = n + 1
        x = x * 2
    return x[:n] * 1, s


@case(*XS)
def ints_and_floats_beyond_2_to_53(x):
    r, n, y = x.sum().item() * 2.0**53 / 6, int(x.sum()) * 2**53 + 1, x
    if r < 2**53 + 1:
        y = y + 1
    if 2**53 + 1 <= r:
        y = y + 2
    if r == 2**53 + 1:
        y = y + 4
    if n > 2.0**53 * 6:
        y = y + 8
    if n == 2.0**53 * 6:
        y = y + 16
    return y * 2 if 0.5 <= n < 2.5 else y


@case(*XS)
def number_or_tensor_beside_floats(x):
    s, best = 0, -math.inf
    for r in x:
        if r > best:
            best = r
        if r > 0:
            s = s + r
    return x * s, (s + 1) * x.double(), best * x, s > 2


@case(*XS)
def match_of_a_number(x):
    match int(x.sum()):
        case 0:
            return x
        case 1 | 2 | 3:
            y = x * 2
        case n if n > 5:
            y = x + n
        case -1 as n:
            y = x - n
        case int(n):
            y = x * n
    return y + 1


@case(*XS)
def match_of_a_pair(x):
    for k in range(2):
        match (k, bool(x.sum() > 0)):
            case (0, True):
                x = x + 1
            case (a, False) if x.max() > 1:
                x = x * (a + 2)
            case (a, b):
                x = x - a - int(b)
    return x


@case(*XS)
def match_that_binds_before_its_guard_fails(x):
    n = 7
    match len(x):
        case n if n > 50:
            x = x + 1
        case _:
            x = x * 2
    if x.sum() > 0:
        x = x * n
    return x - n


@case(*XS)
def name_bound_on_the_right_of_and(x):
    if x.sum() > 0 and (top := x.max()) > 1:
        return x * top
    return x


@case(*XS)
def name_bound_on_the_right_of_and_with_an_else(x):
    if x.sum() > 0 and (top := x.max()) > 1 and top < 50:
        x = x * top
    elif x.min() < 0 and (low := x.min() * 2) < -1:
        x = x - low
    else:
        x = x + 1
    return x


@case(*XS)
def name_bound_on_the_right_of_or(x):
    if x.sum() > 4 or (top := x.max()) > 1:
        return x * 2
    return x * top


@case(*XS)
def name_bound_on_the_right_in_a_while(x):
    n = 0
    while x.sum() > 0 and n < 9 and (top := x.max()) > 0.1:
        n += 1
        x = x - 0.3 * top
        if n == 2:
            continue
        x = x - 0.01
        if x.min() < -3:
            break
    return x, torch.tensor(n)


@case(*XS)
def name_bound_on_the_right_of_or_in_a_while(x):
    n, token, tokens = 0, 0, [0]
    while n < 2 or (token := int(x.argmax())) != 2 and len(tokens) < 6:
        n += 1
        tokens.append(token)
        x = x * 0.9 + torch.tensor([0.0, 0.1, 0.2])
    return x, torch.tensor(n)

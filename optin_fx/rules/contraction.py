"""Matrix products: linear, matmul and friends, einsum. `2 x` the product of all factors is their FLOPs."""

from __future__ import annotations

import torch

from optin_fx.rulebook import COUNTS, Call, Line, line, named, rule

aten = torch.ops.aten


@rule(aten.linear.default)
def linear(call: Call) -> Line:
    """`x W^T + b`."""
    rank = len(call.operands[0].shape)
    lead = " ".join(f"n{i}" for i in range(rank - 1))
    return line(
        f"{lead} i, o i, o -> {lead} o",
        macs=f"{lead} i o",
        roles={"o": "neuron"},
    )


@rule(aten.mm.default)
def mm(call: Call) -> Line:
    """Two matrices."""
    return line("m k, k n -> m n", macs="m k n", roles=_roles(call, "m", "k", "n"))


@rule(aten.bmm.default)
def bmm(call: Call) -> Line:
    """A batch of matrices."""
    return line("b m k, b k n -> b m n", macs="b m k n", roles={**_roles(call, "m", "k", "n"), "b": "head"})


@rule(aten.addmm.default)
def addmm(call: Call) -> Line:
    """`bias + a b`; the bias broadcasts (Hugging Face's Conv1D)."""
    bias = ["m", "n"][2 - len(call.operands[0].shape) :]
    return line(f"{' '.join(bias)}, m k, k n -> m n", macs="m k n", roles={"n": "neuron"})


@rule(aten.baddbmm.default)
def baddbmm(call: Call) -> Line:
    """`bias + a b` over a batch."""
    bias = ["b", "m", "n"][3 - len(call.operands[0].shape) :]
    return line(f"{' '.join(bias)}, b m k, b k n -> b m n", macs="b m k n", roles={**_roles(call, "m", "k", "n"), "b": "head"})


@rule(aten.mv.default)
def mv(call: Call) -> Line:
    """Matrix times vector."""
    return line("m k, k -> m", macs="m k")


@rule(aten.dot.default)
def dot(call: Call) -> Line:
    """Inner product."""
    return line("k, k -> ", macs="k")


@rule(aten.matmul.default)
def matmul(call: Call) -> Line:
    """Matrices in the last two dims, leading dims broadcast; vectors on either side lose their dim."""
    left, right = (len(o.shape) for o in call.operands)
    lead = [f"n{i}" for i in range(max(left, right, 2) - 2)]

    def dims(rank: int, shape: tuple[int, ...], last: str) -> str:
        own = lead[len(lead) - (rank - 2) :] if rank > 2 else []
        # a broadcast extent of one has no axis; naming it would only be noise in the counted factors
        return " ".join([n if shape[i] != 1 or _all_one(call, n, lead) else "1" for i, n in enumerate(own)]) + " " + last

    a = "k" if left == 1 else dims(left, call.operands[0].shape, "m k")
    b = "k" if right == 1 else dims(right, call.operands[1].shape, "k n")
    out = " ".join([*lead, *(["m"] if left > 1 else []), *(["n"] if right > 1 else [])])
    macs = " ".join([*lead, *(["m"] if left > 1 else []), "k", *(["n"] if right > 1 else [])])
    roles = {**_roles(call, "m", "k", "n"), **dict.fromkeys(lead, "head")} if _both_computed(call) else {"n": "neuron"}
    return line(f"{a}, {b} -> {out}", macs=macs, roles=roles)


@rule(aten.einsum.default)
def einsum(call: Call) -> Line | None:
    """The equation is the line."""
    equation = str(call["equation"]).replace(" ", "")
    if "." in equation:
        return None
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = "".join(terms)
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if any(len(set(t)) != len(t) for t in terms):
        return None
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, call.operands, strict=True):
        for letter, size in zip(term, operand.shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    text = ", ".join(" ".join(t) for t in terms) + " -> " + " ".join(right)
    every = "".join(dict.fromkeys("".join(terms)))
    roles = {}
    if _both_computed(call) and len(terms) == 2:
        roles = {c: "qk-dim" for c in every if c not in right}
    return line(text, macs=" ".join(every) if len(terms) == 2 else (), roles=roles)


@rule(aten.outer.default, aten.ger.default)
def outer(call: Call) -> Line:
    """Outer product."""
    return line("m, n -> m n")


@rule(aten.bilinear.default)
def bilinear(call: Call) -> Line:
    """`x^T W y + b` for every output."""
    lead = " ".join(f"n{i}" for i in range(len(call.operands[0].shape) - 1))
    bias = ", o" if len(call.operands) > 3 else ""
    return line(f"{lead} i, {lead} j, o i j{bias} -> {lead} o", macs=f"{lead} i j o", roles={"o": "neuron"})


def grouped_mm(call: Call) -> Line:
    """Rows sorted by expert, one matrix per expert. The widths are free; so are experts whose rows are counted by a router's choice."""
    return line(
        "n! i, e! i o, e! -> n! o",
        why="rows sorted by expert",
        macs="n i o",
        roles={"o": "neuron"},
        drop=True,
        summed=["i"],
        told={2: (COUNTS, "e")},
    )


# not aten._grouped_mm, which wants rows of a multiple of 16 bytes: a narrower one would fail when it runs
named("transformers.grouped_mm_fallback.default", grouped_mm)


def _both_computed(call: Call) -> bool:
    return len(call.operands) >= 2 and all(o.node.op == "call_function" for o in call.operands[-2:])


def _roles(call: Call, m: str, k: str, n: str) -> dict[str, str]:
    """In a product of two activations the contracted dim is a query-key dim, the free one a value dim."""
    return {k: "qk-dim", n: "v-dim"} if _both_computed(call) else {n: "neuron"}


def _all_one(call: Call, name: str, lead: list[str]) -> bool:
    back = len(lead) - lead.index(name) + 2
    sizes = [o.shape[-back] for o in call.operands if len(o.shape) >= back]
    return all(s == 1 for s in sizes)

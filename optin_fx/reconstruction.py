"""Fold what was removed into what stays: refit every consumer of a pruned group, and what lies behind, in closed form, front to back.

The dense and the sliced program run side by side over all calibration data, from one layer that is to be refitted to the next. There,
moments of the sliced program's input against what it should give are summed, the layer's weight and bias are solved for
(`optin_fx.compensation.solve`), and the sliced program goes on with the new ones, so that later layers see, and correct, what earlier
ones could not. One forward of each program in all; what a batch needs later waits in memory, or on disk (`optin_fx.lockstep`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

from optin_fx.analysis import Consumer
from optin_fx.attributes import unique_storages
from optin_fx.available import bytes_to_use
from optin_fx.channels import Renormalising
from optin_fx.compensation import Compensation, Refitted
from optin_fx.data import Batch, several
from optin_fx.execution import current
from optin_fx.freeing import LARGE, give_back
from optin_fx.interpreter import device_of
from optin_fx.linearity import mutated
from optin_fx.lockstep import Lockstep
from optin_fx.logits import LogitRefitting, Product, product_of, products_due, sides_of
from optin_fx.masks import token_mask
from optin_fx.plan import Cut, Plan, resolve
from optin_fx.program import Program
from optin_fx.projections import Projections
from optin_fx.refittable import Layer, can_be_refitted, layer_of
from optin_fx.refitting import Aim, Refitting, Setting
from optin_fx.rewriting import sliced
from optin_fx.sensitivity import Sensitivity, sensitivities

LEAST_ROOM = 32 << 20
"""Bytes that values may take in memory however small the model is, unless `execution(memory_limit=...)` says otherwise."""


def reconstruct(
    program: Program, plan: Plan, batches: Sequence[Batch], options: Compensation | None = None
) -> tuple[fx.GraphModule, list[Refitted]]:
    """The sliced program with refitted consumers, and what was done to each."""
    options, batches = options or Compensation(), several(program, batches)
    with torch.no_grad():
        cut, small = resolve(program, plan), sliced(program, plan)
        due = _due(cut, small, options)
        with Lockstep(small, program, batches, room(program)) as both:
            masks = [token_mask(program, batch) for batch in batches]
            setting = Setting(both, cut, options, batches, masks, _sensitivities(program, small, batches, options, due))
            report = _front_to_back(setting, due)
    small.graph.lint()
    small.recompile()
    return small, report


Due = dict[str, Consumer | None]
"""Names of nodes that are to be refitted, with the pruned axis that each reads; None if it reads none."""


def _front_to_back(setting: Setting, due: Due) -> list[Refitted]:
    both, products = setting.both, _products(setting)
    report: list[Refitted] = []
    done: set[str] = set()
    partners = {node.name: node for node in both.dense.module.graph.nodes}
    for node in list(both.sliced.module.graph.nodes):
        partner = partners.get(node.name)
        if partner is None or node.name in done:
            continue
        if node.name in due:
            layer = layer_of(node, both.sliced.module)
            if isinstance(layer, str):
                report.append(Refitted(node.name, node.name, "none", note=layer))
            elif setting.options.level != "none":
                aim = Aim(setting, partner, due[node.name], layer)
                refitting = Refitting(setting, [aim, *_siblings(setting, aim, due, partners)])
                both.visit(node, refitting.see)
                report += refitting.finish()
                done |= {aim.partner.name for aim in refitting.aims}
                if refitting.bytes >= LARGE:
                    give_back()
        elif node.name in products:
            product = products[node.name]
            if isinstance(product, str):
                report.append(Refitted(node.name, node.name, "none", note=product))
            else:
                mixing = LogitRefitting(setting, product)
                both.visit(node, mixing.see)
                report.append(mixing.finish())
        elif setting.options.norms and report:
            norm = Renormalising.of(both, setting.cut, node, partner)
            if norm is not None:
                both.visit(node, norm.see)
                norm.finish()
    return report


def _siblings(setting: Setting, first: Aim, due: Due, partners: Mapping[str, fx.Node]) -> Iterator[Aim]:
    """Later layers that read what a layer reads, so that moments of it need not be made twice; none behind an op that writes in place."""
    read, node = first.layer.input, first.layer.node.next
    left = len(read.users) - 1
    while left and mutated(node) is None:
        if read in node.all_input_nodes:
            left -= 1
            layer = layer_of(node, setting.both.sliced.module) if node.name in due and node.name in partners else ""
            if isinstance(layer, Layer):
                aim = Aim(setting, partners[node.name], due[node.name], layer)
                if first.reads_with(aim):
                    yield aim
        node = node.next


def _due(cut: Cut, small: fx.GraphModule, options: Compensation) -> Due:
    """Contractions with a weight that read a pruned axis and, if they are wanted, layers that read what has changed."""
    analysis = cut.analysis
    pruned = [consumer for consumer in (*analysis.consumers(), *analysis.choosers()) if any(leaf in cut.kept for leaf in consumer.leaves)]
    found: Due = {}
    for consumer in pruned:
        if not consumer.choice and analysis.applied[consumer.node].is_weighted:
            found.setdefault(consumer.node, consumer)
    if options.reaches_further:
        changed = {consumer.node for consumer in pruned}
        for node in small.graph.nodes:
            if any(read.name in changed for read in node.all_input_nodes):
                changed.add(node.name)
                if node.name not in found and can_be_refitted(node, small):
                    found[node.name] = None
    return found


def _products(setting: Setting) -> dict[str, Product | str]:
    """Inner products over a pruned axis: how each can be refitted, or why it cannot."""
    due = products_due(setting.cut) if setting.options.logits and setting.options.level == "affine" else {}
    if not due:
        return {}
    both, program = setting.both, setting.cut.analysis.program
    nodes, partners = ({node.name: node for node in stream.module.graph.nodes} for stream in (both.sliced, both.dense))
    due = {name: consumer for name, consumer in due.items() if name in nodes}  # the others were in branches that are gone
    sides = {name: sides_of(setting.cut, consumer, nodes[name]) for name, consumer in due.items()}
    read = [side.sliced for pair in sides.values() if not isinstance(pair, str) for side in pair]
    projections = Projections.of(both.sliced.module, program, setting.batches[0], read)
    return {name: product_of(setting.cut, consumer, nodes[name], partners[name], projections) for name, consumer in due.items()}


def _sensitivities(
    program: Program, small: fx.GraphModule, batches: Sequence[Batch], options: Compensation, due: Due
) -> dict[str, Sensitivity]:
    if options.rows_by == "uniform" or options.level == "none":
        return {}
    features = {}
    for node in small.graph.nodes:
        layer = layer_of(node, small) if node.name in due else ""
        if isinstance(layer, Layer):
            features[node.name] = layer.output_dim(node.meta["val"].dim())
    return sensitivities(program, batches, features)


def room(program: Program) -> int:
    """Bytes that values may take in memory: what the user allows, else as much as the weights do, if that much is free.

    The sliced weights, moments and values then stay below three times the dense weights, and the disk's share of the time is small
    (`tools/bench_reconstruction.py memory`).
    """
    free = bytes_to_use(device_of(program))
    if current().memory_limit is not None:
        return free
    weights = sum(tensor.numel() * tensor.element_size() for tensor in unique_storages(program.tensors.values()))
    return min(free, max(weights, LEAST_ROOM))

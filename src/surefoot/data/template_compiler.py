"""A chat template's source → Python, by Jinja's own code generator; what costs goes through the environment.

A loop's body begins with a look at the clock; concatenation, slices, comparisons, new lists and what a macro writes
are computed by methods of the environment (template_environment.py). Nothing is computed while compiling.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame

from surefoot.data.template_meter import BITS, TooMuch


class Generator(CodeGenerator):
    """Jinja's own, but that what costs goes through the environment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loops: set[int] = set()

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        self._loops.add(id(node.body))
        super().visit_For(node, frame)

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        if id(nodes) in self._loops:
            self.writeline("environment.tick()")
        super().blockvisit(nodes, frame)

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData | nodes.Const):
            raise nodes.Impossible  # it would be computed now, before there is a clock
        return super()._output_child_to_const(node, frame, finalize)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            self.write("environment.escaped(context, ")
        elif frame.buffer is not None:
            self.write("environment.text(")
        else:
            super()._output_child_pre(node, frame, finalize)

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        if isinstance(node.value, int) and node.value.bit_length() > BITS:
            raise TooMuch(f"has a number of more than {BITS} bits")
        super().visit_Const(node, frame)

    def visit_Add(self, node: nodes.Add, frame: Frame) -> None:
        parts: list[nodes.Expr] = [node.right]
        left = node.left
        while isinstance(left, nodes.Add):
            parts.append(left.right)
            left = left.left
        self.write("environment.added((")
        for part in (left, *reversed(parts)):
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined(context, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        if _is_cheap(node):
            super().visit_Compare(node, frame)
        else:
            self.write("(environment.tick() or ")
            super().visit_Compare(node, frame)
            self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if not isinstance(node.arg, nodes.Slice):
            super().visit_Getitem(node, frame)
            return
        self.write("environment.sliced(")
        self.visit(node.node, frame)
        for bound in (node.arg.start, node.arg.stop, node.arg.step):
            self.write(", ")
            if bound is None:
                self.write("None")
            else:
                self.visit(bound, frame)
        self.write(")")

    def visit_Slice(self, node: nodes.Slice, frame: Frame) -> None:
        raise TooMuch("uses a slice in a way that no template does")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._new(super().visit_List, node, node.items, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._new(super().visit_Tuple, node, node.items, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._new(
            super().visit_Dict, node, [part for pair in node.items for part in (pair.key, pair.value)], frame
        )

    def _new(self, visit: Any, node: nodes.Expr, parts: Iterable[nodes.Node], frame: Frame) -> None:
        if all(isinstance(part, nodes.Const) for part in parts):
            visit(node, frame)
            return
        self.write("environment.new(")
        visit(node, frame)
        self.write(")")


def _is_cheap(node: nodes.Compare) -> bool:
    """Compared with something written out in the template: that takes no longer than it is long."""
    if len(node.ops) > 1:
        return False
    right = node.ops[0]
    if right.op in ("in", "notin"):
        return isinstance(right.expr, nodes.List | nodes.Tuple) and all(
            isinstance(item, nodes.Const) for item in right.expr.items
        )
    cheap = (nodes.Const, nodes.Compare, nodes.Test, nodes.Not)
    return isinstance(node.expr, cheap) or isinstance(right.expr, cheap)

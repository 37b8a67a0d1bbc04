"""A kernel's PTX as a Python generator over NumPy arrays: an array element is one thread's register.

The generator runs for a unit of threads that execute together (see :mod:`.threads`) and yields where others may go on:
at barriers, and before whatever talks to other blocks. Registers hold bits, in unsigned integers of their width; no
array is ever written in place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import numerics
from .forms import FORMS, TYPES, bits_of
from .parse import Instruction, Kernel, UnknownForm

__all__ = ["BARRIER", "SHARED_WINDOW", "SYNC", "translate"]

SHARED_WINDOW = 1024
"""The address of a block's shared memory in its window."""

BARRIER, SYNC = "barrier", "sync"
"""What a program yields: it waits for its block's other threads; something that other blocks see comes next."""

_HOLDS = {1: "bool_", 16: "uint16", 32: "uint32", 64: "uint64"}
_SCOPES = {"cta", "cluster", "gpu", "sys"}
_CACHING = {"ca", "cg", "cs", "lu", "wb", "wt", "L1__evict_first", "L1__evict_last", "L1__no_allocate"}
_ORDERS = {"relaxed", "acquire", "release", "acq_rel"}
_SPECIAL = {
    "%tid.x": "t.thread", "%ctaid.x": "t.same(t.block.index[0])", "%ctaid.y": "t.same(t.block.index[1])",
    "%ctaid.z": "t.same(t.block.index[2])", "%ntid.x": "t.same(t.block.threads)", "%laneid": "(t.thread & 31)",
    "%nctaid.x": "t.same(t.block.grid[0])", "%nctaid.y": "t.same(t.block.grid[1])",
    "%nctaid.z": "t.same(t.block.grid[2])", "%tid.y": "t.same(0)", "%tid.z": "t.same(0)",
}  # fmt: skip


def _from_bfloat16(x: Any) -> Any:
    return (x.astype(np.uint32) << 16).view(np.float32)


def _pack(x: Any) -> Any:
    return np.ascontiguousarray(x).view(np.uint64)[:, 0]


def _unpack(x: Any) -> Any:
    return np.ascontiguousarray(x)[:, None].view(np.float32)


_NAMES: dict[str, Any] = {
    **{name: getattr(np, name) for name in {*TYPES.values(), *_HOLDS.values()}},
    **{name: getattr(numerics, name) for name in numerics.__all__},
    "np": np, "from_bfloat16": _from_bfloat16, "pack": _pack, "unpack": _unpack,
    "BARRIER": BARRIER, "SYNC": SYNC,
}  # fmt: skip


class _Writer:
    """Writes the Python of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.constants: dict[tuple[str, int], str] = {}

    # Operands -----------------------------------------------------------------------------------------------------

    def variable(self, register: str) -> str:
        if register not in self.kernel.widths:
            raise UnknownForm(f"register {register}")
        return "r_" + re.sub(r"\W", "", register)

    def constant(self, kind: str, value: int) -> str:
        return self.constants.setdefault((kind, value), f"c{len(self.constants)}")

    def read(self, operand: str, kind: str) -> str:
        """An operand as an array of a type."""
        name = TYPES[kind]
        if operand in _SPECIAL:
            return _SPECIAL[operand]
        if operand.startswith("%"):
            width, held = bits_of(kind), self.kernel.widths[operand]
            text = self.variable(operand)
            if width == held:
                return text if name == _HOLDS[held] else f"{text}.view({name})"
            if width > held or kind == "pred":
                raise UnknownForm(f"{operand} of {held} bits read as {kind}")
            return f"{text}.astype(uint{width}).view({name})"
        if operand == "global_smem":
            return self.constant(name, SHARED_WINDOW)
        bits = max(bits_of(kind), 8)
        if found := re.fullmatch(r"0[fFdD]([0-9A-Fa-f]+)", operand):
            return self.constant(f"{name} uint{bits}", int(found[1], 16))
        try:
            value = int(operand.rstrip("U"), 0)
        except ValueError:
            raise UnknownForm(f"operand {operand}") from None
        return self.constant(f"{name} uint{bits}" if kind != "pred" else "bool_", value & ((1 << bits) - 1))

    def stored(self, register: str, kind: str, expression: str) -> str:
        """An expression of a type as the bits that a register holds, which may be wider."""
        held, name = self.kernel.widths[register], TYPES[kind]
        if kind == "pred" or bits_of(kind) == held:
            return expression if name == _HOLDS[held] else f"({expression}).view({_HOLDS[held]})"
        if bits_of(kind) > held:
            raise UnknownForm(f"{kind} into {register} of {held} bits")
        return f"({expression}).astype({'int' if kind[0] == 's' else 'uint'}{held}).view({_HOLDS[held]})"

    def assign(self, ins: Instruction, register: str, kind: str, expression: str) -> list[str]:
        if register == "_":
            return []
        name, value = self.variable(register), self.stored(register, kind, expression)
        if ins.guard is None:
            return [f"{name} = {value}"]
        return [f"{name} = np.where({self.mask(ins)}, {value}, {name})"]

    def mask(self, ins: Instruction) -> str:
        """Which threads run an instruction, or None for all of them."""
        if ins.guard is None:
            return "None"
        return f"~{self.variable(ins.guard)}" if ins.negated else self.variable(ins.guard)

    def address(self, operand: str, kind: str) -> str:
        found = re.fullmatch(r"\[\s*(%?\w+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if found is None:
            raise UnknownForm(f"address {operand}")
        base, away = self.read(found[1], kind), int(found[2] or 0)
        return base if away == 0 else f"({base} + {self.read(str(away), kind)})"

    @staticmethod
    def vector(operand: str) -> list[str]:
        return [part.strip() for part in operand.strip("{} ").split(",")]

    # Instructions -------------------------------------------------------------------------------------------------

    def write(self, ins: Instruction) -> list[str]:
        """The Python lines of an instruction."""
        if ins.opcode in FORMS:
            return self.plain(ins)
        special: dict[str, Callable[[Instruction], list[str]]] = {
            "bra": self.branch, "ret": self.branch, "bar": self.barrier, "barrier": self.barrier, "ld": self.load,
            "st": self.store, "atom": self.atomic, "red": self.atomic, "shfl": self.shuffle, "mov": self.move,
            "lop3": self.logic, "ldmatrix": self.matrix, "stmatrix": self.matrix,
        }  # fmt: skip
        handler = special.get(ins.parts[0])
        if handler is None:
            raise UnknownForm(ins.opcode)
        return handler(ins)

    def plain(self, ins: Instruction) -> list[str]:
        if ins.opcode.startswith("mov.") and "{" in "".join(ins.operands):
            return self.move(ins)
        form = FORMS[ins.opcode]
        if len(ins.operands) != 1 + len(form.sources):
            raise UnknownForm(f"{ins.opcode} with {len(ins.operands)} operands")
        sources = [self.read(o, kind) for o, kind in zip(ins.operands[1:], form.sources, strict=True)]
        return self.assign(ins, ins.operands[0], form.result, form.expression.format(*sources))

    def branch(self, ins: Instruction) -> list[str]:
        if ins.opcode == "ret":
            go = "return"
        elif ins.opcode in ("bra", "bra.uni"):
            go = f"run = {self.kernel.labels[ins.operands[0]]}; continue"
        else:
            raise UnknownForm(ins.opcode)
        return [go if ins.guard is None else f"if t.agree({self.mask(ins)}, {ins.line}): {go}"]

    def barrier(self, ins: Instruction) -> list[str]:
        if ins.opcode == "bar.warp.sync" and ins.operands in (("-1",), ("0xffffffff",)):
            return ["t.warp_barrier()"]
        if ins.opcode in ("bar.sync", "barrier.sync") and ins.operands == ("0",) and ins.guard is None:
            return ["yield BARRIER"]
        raise UnknownForm(f"{ins.opcode} {', '.join(ins.operands)}")

    def modifiers(self, ins: Instruction, space: str) -> tuple[str, str, int, str]:
        """Order, scope, vector length and type of a memory instruction in a space; anything else is unknown."""
        order, scope, length = "weak", "cta", 1
        for part in ins.parts[1:-1]:
            if part in _ORDERS:
                order = part
            elif part in _SCOPES:
                scope = part
            elif part in ("v2", "v4", "v8"):
                length = int(part[1])
            elif part not in (space, *_CACHING) and not (part == "shared__cta" and space == "shared"):
                raise UnknownForm(ins.opcode)
        if ins.parts[-1] not in TYPES:
            raise UnknownForm(ins.opcode)
        return order, scope, length, ins.parts[-1]

    def load(self, ins: Instruction) -> list[str]:
        space = ins.parts[1].split("__")[0]
        if space == "param":
            kind, name = ins.parts[-1], re.fullmatch(r"\[(\w+)\]", ins.operands[1])
            if ins.opcode != f"ld.param.{kind}" or name is None:
                raise UnknownForm(f"{ins.opcode} {ins.operands[1]}")
            value = f"t.parameter('{name[1]}', {TYPES[kind]})"
            return self.assign(ins, ins.operands[0], kind, value)
        space = next((p for p in ins.parts if p.split("__")[0] in ("global", "shared")), "").split("__")[0]
        order, scope, length, kind = self.modifiers(ins, space)
        registers, size = self.vector(ins.operands[0]), bits_of(kind) // 8
        if len(registers) != length:
            raise UnknownForm(f"{ins.opcode} {ins.operands[0]}")
        if space == "shared" and order == "weak":
            lines = []
            call = (
                f"t.load_shared({self.address(ins.operands[1], 'u32')}, {self.mask(ins)}, {size * length}, {ins.line})"
            )
        elif space == "global" and order in ("weak", "relaxed", "acquire"):
            lines = [] if order == "weak" else ["yield SYNC"]
            call = (
                f"t.load_global({self.address(ins.operands[1], 'u64')}, {self.mask(ins)}, {size * length}, "
                f"{order!r}, {scope!r}, {ins.line})"
            )
        else:
            raise UnknownForm(ins.opcode)
        lines.append(f"loaded = {call}.view({TYPES[kind]})")
        for i, register in enumerate(registers):
            lines += self.assign(ins, register, kind, f"np.ascontiguousarray(loaded[:, {i}])")
        return lines

    def store(self, ins: Instruction) -> list[str]:
        space = next((p for p in ins.parts if p.split("__")[0] in ("global", "shared")), "").split("__")[0]
        order, scope, length, kind = self.modifiers(ins, space)
        values = [self.read(part, kind) for part in self.vector(ins.operands[1])]
        if len(values) != length or order not in ("weak", "relaxed", "release"):
            raise UnknownForm(f"{ins.opcode} {ins.operands[1]}")
        data = f"np.stack(({', '.join(values)},), 1).view(uint8)"
        if space == "shared" and order == "weak":
            return [f"t.store_shared({self.address(ins.operands[0], 'u32')}, {self.mask(ins)}, {data}, {ins.line})"]
        if space != "global":
            raise UnknownForm(ins.opcode)
        where = f"{self.address(ins.operands[0], 'u64')}, {self.mask(ins)}, {data}, {order!r}, {scope!r}, {ins.line}"
        return ([] if order == "weak" else ["yield SYNC"]) + [f"t.store_global({where})"]

    def atomic(self, ins: Instruction) -> list[str]:
        parts = [p for p in ins.parts if p not in _ORDERS and p not in _SCOPES]
        order = next((p for p in ins.parts if p in _ORDERS), "relaxed")
        scope = next((p for p in ins.parts if p in _SCOPES), "gpu")
        operands = list(ins.operands)
        target = operands.pop(0) if ins.parts[0] == "atom" else "_"
        known = ("add", "exch", "cas", "or", "and", "xor", "min", "max")
        if parts[1] != "global" or len(parts) != 4 or parts[2] not in known or parts[3] not in ("b32", "u32", "s32"):
            raise UnknownForm(ins.opcode)
        values = ", ".join(self.read(o, parts[3]) for o in operands[1:])
        call = (
            f"t.atomic({parts[2]!r}, {self.address(operands[0], 'u64')}, {self.mask(ins)}, ({values},), "
            f"{order!r}, {scope!r}, {ins.line})"
        )
        return [
            "yield SYNC",
            f"loaded = {call}",
            *self.assign(ins, target, parts[3], f"loaded.view({TYPES[parts[3]]})"),
        ]

    def shuffle(self, ins: Instruction) -> list[str]:
        how = ins.parts[2]
        ends = {"bfly": "31", "idx": "31", "down": "31", "up": "0"}
        _, _, by, end, members = ins.operands
        known = ins.opcode == f"shfl.sync.{how}.b32" and ends.get(how) == str(int(end, 0))
        if not known or members not in ("-1", "0xffffffff") or ins.guard or "|" in ins.operands[0]:
            raise UnknownForm(f"{ins.opcode} {', '.join(ins.operands)}")
        call = f"t.shuffle({self.read(ins.operands[1], 'b32')}, {self.read(by, 'b32')}, {how!r})"
        return self.assign(ins, ins.operands[0], "b32", call)

    def move(self, ins: Instruction) -> list[str]:
        """Registers joined in a wider one, or one taken apart."""
        kind, (target, source) = ins.parts[-1], ins.operands
        whole = bits_of(kind)
        if target.startswith("{"):
            registers = self.vector(target)
            part = f"b{whole // len(registers)}"
            lines = [f"loaded = np.ascontiguousarray({self.read(source, kind)})[:, None].view({TYPES[part]})"]
            for i, register in enumerate(registers):
                lines += self.assign(ins, register, part, f"np.ascontiguousarray(loaded[:, {i}])")
            return lines
        if not source.startswith("{"):
            raise UnknownForm(f"{ins.opcode} {source}")
        parts = self.vector(source)
        values = ", ".join(self.read(part, f"b{whole // len(parts)}") for part in parts)
        return self.assign(ins, target, kind, f"np.stack(({values},), 1).view({TYPES[kind]})[:, 0]")

    def logic(self, ins: Instruction) -> list[str]:
        if ins.opcode != "lop3.b32":
            raise UnknownForm(ins.opcode)
        target, *sources, table = ins.operands
        values = ", ".join(self.read(source, "b32") for source in sources)
        return self.assign(ins, target, "b32", f"logic3({values}, {int(table, 0)})")

    def matrix(self, ins: Instruction) -> list[str]:
        """8 x 8 matrices of 16-bit elements between shared memory and a warp's registers."""
        found = re.fullmatch(
            r"(ld|st)matrix\.sync\.aligned\.(?:m8n8\.x([124])(\.trans)?)\.shared(?:::cta)?\.b16", ins.opcode
        )
        if found is None or ins.guard:
            raise UnknownForm(ins.opcode)
        registers, place = ins.operands if found[1] == "ld" else ins.operands[::-1]
        names = [self.variable(r) for r in self.vector(registers)]
        where, trans = self.address(place, "u32"), found[3] is not None
        if len(names) != int(found[2]):
            raise UnknownForm(f"{ins.opcode} {registers}")
        if found[1] == "ld":
            return [f"{', '.join(names)}, = t.load_matrices({where}, {len(names)}, {trans}, {ins.line})"]
        return [f"t.store_matrices({where}, ({', '.join(names)},), {trans}, {ins.line})"]

    # The whole ----------------------------------------------------------------------------------------------------

    def lines(self) -> Iterator[str]:
        body = []
        for number, run in enumerate(self.kernel.runs):
            body.append(f"  if run == {number}:")
            body.append(f"   t.enter({number})")
            for ins in run:
                try:
                    written = self.write(ins)
                except (UnknownForm, KeyError, IndexError, ValueError) as error:
                    text = f"{ins.opcode} {', '.join(ins.operands)}"
                    raise UnknownForm(f"{self.kernel.name}, line {ins.line}: {text} ({error})") from error
                body += ["   " + line for line in written]
            body.append(f"   run = {number + 1}")
        yield "def program(t):"
        for (kind, value), name in self.constants.items():
            shown, *held = kind.split()
            yield f" {name} = np.full(t.count, {value}, {held[0] if held else shown}).view({shown})"
        for register, width in self.kernel.widths.items():
            yield f" {self.variable(register)} = t.garbage({_HOLDS[width]})"
        yield " run = 0"
        yield " while True:"
        yield from body
        yield "  return"
        yield "  yield"


def translate(kernel: Kernel) -> Callable[[Any], Iterator[str]]:
    """The generator function of a kernel; its argument is the unit of threads.

    Raises:
        UnknownForm: naming the instruction, for any that is not known.
    """
    source = "\n".join(_Writer(kernel).lines())
    scope = dict(_NAMES)
    exec(compile(source, f"<PTX of {kernel.name}>", "exec"), scope)
    program: Callable[[Any], Iterator[str]] = scope["program"]
    return program

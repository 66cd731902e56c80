"""One program (CTA) as the text of a `@cute.kernel` function; `nests.py` decides, this prints.

Statements outside `tile` are run by all threads alike (a store to memory by thread 0); a `tile`
nest deals its lanes to the threads; a product of 16-bit floats goes to the tensor cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kir.backends.cute.expressions import REDUCERS, SCALARS, STORAGE, Printer, bare, constant
from kir.backends.cute.launch import INDEX_OPS
from kir.backends.cute.nests import (
    MMA,
    Nest,
    Placement,
    Product,
    name_of,
    refuse,
    static,
    variables,
    warp_grid,
)
from kir.backends.cute.writer import SHARED_ALIGN, Writer
from kir.dtypes import DType, i64
from kir.ir import (
    Axis,
    Buffer,
    Const,
    Expr,
    If,
    Kernel,
    Loop,
    Op,
    Param,
    Read,
    Stmt,
    Store,
    Var,
    walk,
)
from kir.ops import identity, op

DEFAULT_WARPS = 4
UNROLL = 64
"""A lane walk of more steps than this is a run-time loop."""


def as_json(e: Expr) -> Any:
    """An index expression over dims as plain data: an int, a dim's name, or [op, operands...]."""
    match e:
        case Const(value, _):
            return value
        case Var(name):
            return name
        case Op(name, args, _) if name in INDEX_OPS:
            return [name, *(as_json(a) for a in args)]
    raise refuse(e, "a launch's size must be an expression of dims")


class Program(Writer):
    """Generates one kernel function."""

    def __init__(
        self,
        kernel: Kernel,
        name: str,
        body: tuple[Stmt, ...],
        tensors: Mapping[str, Param | Buffer],
        dims: Sequence[str],
        helpers: set[str],
    ) -> None:
        self.kernel, self.tensors = kernel, tensors
        super().__init__()
        self.name = self.names.fresh(name)
        self.grid, self.where, self.body, warps = _peel(body)
        self.place = Placement(self.body, warps)
        self.threads = self.place.threads
        self.scope.update((d, self.names.fresh(d)) for d in dims)
        self.dims = dict(self.scope)
        used = {name_of(x) for s in body for x in walk(s) if isinstance(x, Read | Store)}
        self.used = [t for t in tensors if t in used]
        self.python = {t: self.names.fresh(t) for t in self.used}
        self.pointers = {t: self.names.fresh(f"{t}_ptr") for t in self.used}
        self.shapes = {t: tensors[t].shape for t in tensors}
        self.slot = ""  # the current nest's index into spread buffers
        self.private: dict[str, Buffer] = {}  # buffers declared inside the current nest
        self.partial: dict[str, tuple[str, str]] = {}  # reduced in this nest: partial, op
        self.mma: dict[tuple[int, int], str] = {}  # block shape -> its fragment coordinates
        self.tiled: dict[tuple[int, int, DType], str] = {}  # ... and operand dtype -> tiled product
        self.scratch: dict[DType, str] = {}
        self.print = Printer(self.scope, self._access, self.shapes, helpers)
        self.signature = [
            *((self.pointers[t], STORAGE[tensors[t].type], True) for t in self.used),
            *((p, "Int64", False) for p in self.dims.values()),
        ]
        self._unique(body)
        self.exchanged = self._exchanged()
        self._generate()

    # --- the whole ---------------------------------------------------------------------------

    def _generate(self) -> None:
        self.emit("tid, _, _ = cute.arch.thread_idx()")
        for t in self.used:
            shape = self.tensors[t].shape
            self.emit(f"{self.python[t]} = {self._tensor(self.pointers[t], shape)}")
        for b in self.place.locals.values():
            self.shapes[b.name] = b.shape
            self.python[b.name] = self._allocate(b.name, b.type, b.shape)
        self._blocks()
        for p in self.place.products.values():
            self._prepare_product(p)
        for dtype in self._reduced():
            name = self.names.fresh(f"scratch_{dtype}")
            self.scratch[dtype] = name
            self._at_smem(name, dtype, (self.place.warps,))
        with self.under(self.where):
            self.statements(self.body)

    def _blocks(self) -> None:
        """Indices of the grid axes from the linear block number, the last axis fastest."""
        if not self.grid:
            return
        self.emit("pid = Int64(cute.arch.block_idx()[0])")
        left = "pid"
        indices: list[tuple[str, str]] = []
        for n, (axis, extent) in enumerate(reversed(self.grid)):
            name = self.names.fresh(axis)
            if n == len(self.grid) - 1:
                indices.append((name, left))
            else:
                size = self.print(extent)
                indices.append((name, f"{left} - {left} // {size} * {size}"))
                left = f"({left} // {size})"
            self.scope[axis] = name
        for name, text in reversed(indices):
            self.emit(f"{name} = {text}")

    def text(self) -> str:
        parameters = [
            *(f"{self.pointers[t]}: cute.Pointer" for t in self.used),
            *(f"{p}: Int64" for p in self.dims.values()),
        ]
        head = ["@cute.kernel", f"def {self.name}({', '.join(parameters)}):"]
        if self.shared:
            smem = f"    smem = cute.arch.get_dyn_smem(Uint8, alignment={SHARED_ALIGN})"
            head.append(smem)
        return "\n".join([*head, *self.lines])

    def call(self) -> list[str]:
        arguments = ", ".join(n for n, _, _ in self.signature)
        blocks = bare(" * ".join(self.print(n) for _, n in self.grid)) or "1"
        return [
            f"    {self.name}({arguments}).launch(",
            f"        grid=[Int32({blocks}), 1, 1], block=[{self.threads}, 1, 1],"
            f" smem={self.shared},",
            "    )",
        ]

    def description(self) -> dict[str, Any]:
        """How to launch it, as plain data; the entry's name is known once it is compiled."""
        return {
            "function": self.name,
            "grid": [as_json(n) for _, n in self.grid],
            "block": [self.threads, 1, 1],
            "shared": self.shared,
            "args": [{"tensor": t} for t in self.used] + [{"dim": d} for d in self.dims],
        }

    # --- shared memory ----------------------------------------------------------------------

    def _allocate(self, name: str, dtype: DType, shape: Sequence[Expr]) -> str:
        python = self.names.fresh(name)
        buffer = self.place.locals[name]
        self._at_smem(python, dtype, [static(n, buffer) for n in shape])
        return python

    # --- what the whole program needs --------------------------------------------------------

    def _unique(self, body: Sequence[Stmt]) -> None:
        seen: set[str] = set(self.tensors)
        for b in (x for s in body for x in walk(s) if isinstance(x, Buffer)):
            if b.name in seen:
                raise refuse(b, f"two buffers of one program are named `{b.name}`", "rename one")
            if b.space == "global":
                raise refuse(b, "a `global` buffer inside a program", "declare it at the top")
            if b.type not in SCALARS:
                raise refuse(b, f"no {b.type} here")
            seen.add(b.name)
            self.shapes[b.name] = b.shape
        for x in (x for s in body for x in walk(s) if isinstance(x, Read | Store)):
            if name_of(x) not in seen:
                raise refuse(
                    x,
                    f"`{name_of(x)}` is kept on chip across launches",
                    "declare it in `global`, or inside the `grid`",
                )

    def _exchanged(self) -> set[str]:
        """Memory that this program both writes and reads: threads meet around its writes."""
        inside = [x for s in self.body for x in walk(s) if isinstance(x, Read | Store)]
        memory = {*self.used, *self.place.locals}
        written = {x.target for x in inside if isinstance(x, Store)}
        written |= {b.name for b in self.place.locals.values() if b.init is not None}
        read = {x.tensor for x in inside if isinstance(x, Read)}
        read |= {x.target for x in inside if isinstance(x, Store) and x.op is not None}
        return memory & written & read

    def _reduced(self) -> list[DType]:
        """The dtypes that lanes reduce into replicated registers."""
        found: dict[DType, None] = {}
        for nest in self.place.nests:
            for s in (x for b in nest.body for x in walk(b)):
                if not isinstance(s, Store) or s.target in self.place.spread:
                    continue
                if s.target in self.place.registers:
                    found[self.place.registers[s.target].type] = None
        return list(found) if self.place.warps > 1 else []

    # --- statements of the program -----------------------------------------------------------

    def statements(self, body: Sequence[Stmt]) -> None:
        for s in body:
            match s:
                case Buffer():
                    self._buffer(s)
                case Store():
                    self._store(s)
                case If(condition, inner):
                    with self.under((condition,)):
                        self.statements(inner)
                case Loop() if s.kind == "tile":
                    self._tile(s)
                case Loop():
                    unrolled = s.kind == "unroll"
                    with self.index(s.axis.name, s.axis.extent, unrolled), self.under(s.where):
                        self.statements(s.body)

    def _buffer(self, b: Buffer) -> None:
        if b.space == "local":
            if b.init is not None:
                self._fill_local(b)
            return
        group = self.place.spread.get(b.name)
        name = self.names.fresh(b.name)
        self.python[b.name] = name
        if group is None:
            shape = ", ".join(str(static(n, b)) for n in b.shape) or "1"
            self.emit(f"{name} = cute.make_rmem_tensor(({shape},), {STORAGE[b.type]})")
        elif group in self.place.fragments:
            m, n = (static(x, b) for x in b.shape)
            fragment = f"{self.mma[m, n]}_shape"
            self.emit(f"{name} = cute.make_rmem_tensor({fragment}, {STORAGE[b.type]})")
        else:
            lanes = 1
            for x in b.shape:
                lanes *= static(x, b)
            steps = -(-lanes // self.threads)
            self.emit(f"{name} = cute.make_rmem_tensor(({steps},), {STORAGE[b.type]})")
        if b.init is not None:
            self._fill_register(b, name)

    def _fill_register(self, b: Buffer, name: str) -> None:
        assert b.init is not None
        value = self.print.stored(self.print(b.init), b.type)
        if not b.shape:
            self.emit(f"{name}[0] = {value}")
            return
        counter = self.names.fresh("n")
        with self.block(f"for {counter} in cutlass.range_constexpr(cute.size({name})):"):
            self.emit(f"{name}[{counter}] = {value}")

    def _fill_local(self, b: Buffer) -> None:
        assert b.init is not None
        sizes = [static(n, b) for n in b.shape] or [1]
        self._meet((b.name,))
        nest = Nest(
            Loop("tile", _axis("fill", 1), (), ()),
            tuple(f"fill_{n}" for n in range(len(sizes))),
            tuple(sizes),
            (),
            (),
        )
        with self._walk(nest, nest.axes):
            index = ", ".join(self.scope[a] for a in nest.axes)
            value = self.print.stored(self.print(b.init), b.type)
            self.emit(f"{self.python[b.name]}[{index}] = {value}")
        for a in nest.axes:
            self.scope.pop(a, None)
        self._meet((b.name,))

    def _store(self, s: Store) -> None:
        """A store outside `tile`: registers by all threads, memory by thread 0."""
        if s.target in self.place.registers:
            self.emit(f"{self._target(s)} = {self._value(s)}")
            return
        if s.op is not None and s.target not in self.place.locals:
            raise refuse(s, "an update of a global tensor (atomics)", "accumulate in `reg`")
        self._meet((s.target,))
        with self.block("if tid == 0:"):
            self.emit(f"{self._target(s)} = {self._value(s)}")
        self._meet((s.target,))

    def _meet(self, written: Sequence[str]) -> None:
        """Threads wait for one another where memory changes that they read."""
        if self.exchanged & set(written) and self.threads > 1:
            self.emit("cute.arch.sync_threads()")

    def _value(self, s: Store) -> str:
        dtype = self._dtype(s.target)
        value = s.value if s.op is None else op(s.op, Read(s.target, s.indices, dtype), s.value)
        return bare(self.print.stored(self.print(value), dtype))

    def _dtype(self, name: str) -> DType:
        if name in self.tensors:
            return self.tensors[name].type
        found = self.private.get(name) or self.place.locals.get(name)
        return (found or self.place.registers[name]).type

    def _target(self, s: Store) -> str:
        return self._access(s.target, s.indices, self.print)

    def _access(self, name: str, indices: tuple[Expr, ...], printer: Printer) -> str:
        """The element of a tensor, wherever it lives."""
        if name in self.place.spread:
            return f"{self.python[name]}[{self.slot}]"
        python = self.partial[name][0] if name in self.partial else self.python[name]
        return f"{python}[{', '.join(bare(printer(i)) for i in indices) or '0'}]"

    # --- nests -------------------------------------------------------------------------------

    def _tile(self, loop: Loop) -> None:
        found = self.place.products.get(id(loop))
        if found is not None:
            self._product(found)
            return
        nest = next(n for n in self.place.nests if n.node is loop)
        dealt = self.place.walk_axes(nest)
        written = [x.target for s in nest.body for x in walk(s) if isinstance(x, Store)]
        self._meet(written)
        reductions = self._open_reductions(nest)
        self.emit(
            f"# tile {', '.join(f'{a}: {n}' for a, n in zip(nest.axes, nest.extents, strict=True))}"
        )
        saved = dict(self.scope)
        group = self.place.spread.get(self._spread_in(nest) or "")
        if group in self.place.fragments:
            walk_ = self._walk_fragment(nest, dealt)
        else:
            walk_ = self._walk(nest, dealt)
        with walk_:
            self._serial(nest, [a for a in nest.axes if a not in dealt])
        self.scope.clear()
        self.scope.update(saved)
        self.slot = ""
        self.private = {}
        self._close_reductions(reductions)
        self._meet(written)

    def _spread_in(self, nest: Nest) -> str | None:
        inside = [x for s in nest.body for x in walk(s) if isinstance(x, Read | Store)]
        return next((name_of(x) for x in inside if name_of(x) in self.place.spread), None)

    @contextmanager
    def _walk(self, nest: Nest, dealt: Sequence[str]) -> Iterator[None]:
        """Each thread takes lanes tid, tid + threads, ... of the block of the dealt axes."""
        if not dealt:
            with self.block("if tid == 0:"):
                yield
            return
        lanes = 1
        for a in dealt:
            lanes *= nest.extent(a)
        steps = -(-lanes // self.threads)
        slot, lane = self.names.fresh("r"), self.names.fresh("lane")
        self.slot = slot
        ranged = "range_constexpr" if steps <= UNROLL or self._spread_in(nest) else "range"
        with self.block(f"for {slot} in cutlass.{ranged}({steps}):"):
            self.emit(f"{lane} = tid + {slot} * {self.threads}")
            depth = self.depth
            if lanes % self.threads:
                self.emit(f"if {lane} < {lanes}:")
                self.depth += 1
            left = lane
            coordinates: list[str] = []
            for n, a in enumerate(reversed(list(dealt))):
                name = self.names.fresh(a)
                last = n == len(dealt) - 1
                text = left if last else f"{left} % {nest.extent(a)}"
                coordinates.append(f"{name} = Int64({text})")
                left = f"{left} // {nest.extent(a)}"
                self.scope[a] = name
            for text in reversed(coordinates):
                self.emit(text)
            yield
            self.depth = depth

    @contextmanager
    def _walk_fragment(self, nest: Nest, dealt: Sequence[str]) -> Iterator[None]:
        """Each thread takes the elements of its tensor-core fragment."""
        coordinates = self.mma[nest.extent(dealt[0]), nest.extent(dealt[1])]
        slot = self.names.fresh("r")
        self.slot = slot
        with self.block(f"for {slot} in cutlass.range_constexpr(cute.size({coordinates})):"):
            for n, a in enumerate(dealt):
                name = self.names.fresh(a)
                self.scope[a] = name
                self.emit(f"{name} = Int64({coordinates}[{slot}][{n}])")
            yield

    def _serial(self, nest: Nest, axes: Sequence[str]) -> None:
        """The axes that each thread walks itself, then the conditions, then the body."""
        if axes:
            with self.index(axes[0], Const(nest.extent(axes[0]), i64), False):
                self._serial(nest, axes[1:])
            return
        with self.under(nest.conditions):
            for s in nest.body:
                self._lane(s)

    def _lane(self, s: Stmt) -> None:
        """A statement that one lane runs by itself."""
        match s:
            case Buffer():
                self.private[s.name] = s
                self.python[s.name] = name = self.names.fresh(s.name)
                shape = ", ".join(str(static(n, s)) for n in s.shape) or "1"
                self.emit(f"{name} = cute.make_rmem_tensor(({shape},), {STORAGE[s.type]})")
                if s.init is not None:
                    self._fill_register(s, name)
            case Store():
                replicated = s.target in self.place.registers and s.target not in self.place.spread
                if replicated and s.target not in self.partial:
                    raise refuse(
                        s, f"lanes all store to `{s.target}`, which is one for the program"
                    )
                if s.op is not None and s.target in self.tensors:
                    raise refuse(s, "an update of a global tensor (atomics)", "accumulate in `reg`")
                self.emit(f"{self._target(s)} = {self._value(s)}")
            case If(condition, inner):
                with self.under((condition,)):
                    for x in inner:
                        self._lane(x)
            case Loop():
                with (
                    self.index(s.axis.name, s.axis.extent, s.kind == "unroll"),
                    self.under(s.where),
                ):
                    for x in s.body:
                        self._lane(x)

    # --- reductions over lanes ---------------------------------------------------------------

    def _open_reductions(self, nest: Nest) -> list[Buffer]:
        """A partial of its own for each thread of what the lanes reduce into shared registers."""
        found: dict[str, Buffer] = {}
        inside = [x for s in nest.body for x in walk(s) if isinstance(x, Read | Store)]
        for s in inside:
            if not isinstance(s, Store) or s.target in self.place.spread:
                continue
            buffer = self.place.registers.get(s.target)
            if buffer is None or s.op is None:
                continue
            if any(isinstance(x, Read) and x.tensor == s.target for x in inside):
                raise refuse(s, f"lanes reduce into `{s.target}` and read it in the same nest")
            if buffer.shape or self.partial.get(s.target, ("", s.op))[1] != s.op:
                raise refuse(s, f"lanes may reduce into a scalar, by one operator; `{s.target}`"
                             " is not so")  # fmt: skip
            if s.target not in found:
                name = self.names.fresh(f"{s.target}_part")
                self.partial[s.target] = (name, s.op)
                found[s.target] = buffer
                kind = STORAGE[buffer.type]
                self.emit(f"{name} = cute.make_rmem_tensor((1,), {kind})")
                neutral = identity(s.op, buffer.type)
                text = self.print.stored(constant(neutral.value, buffer.type), buffer.type)
                self.emit(f"{name}[0] = {text}")
        return list(found.values())

    def _close_reductions(self, buffers: Sequence[Buffer]) -> None:
        for b in buffers:
            name, how = self.partial.pop(b.name)
            kind = b.type.kind
            reducer = self.print.use(REDUCERS[how, kind])
            scratch = self.scratch.get(b.type, "None")
            part = f"{name}[0]"
            call = f"_block_reduce({reducer}, {part}, {scratch}, tid, {self.place.warps})"
            total = self.print.use(call)
            whole = f"{self.python[b.name]}[0]"
            combined = f"{reducer}({whole}, {total})"
            wide = b.type.is_float and b.type.bits == 16
            self.emit(f"{whole} = {f'{SCALARS[b.type]}({combined})' if wide else combined}")

    # --- matrix products ---------------------------------------------------------------------

    def _prepare_product(self, p: Product) -> None:
        """The tiled product of a block shape, and each thread's coordinates in its fragment."""
        m, n, _ = p.tile
        dtype = p.left.dtype
        if (m, n, dtype) in self.tiled:
            return
        down, across = warp_grid(p, self.place.warps)
        name = self.names.fresh("mma")
        self.tiled[m, n, dtype] = name
        self.mma.setdefault((m, n), f"{name}_at")
        kind = SCALARS[dtype]
        self.emit(f"{name} = cute.make_tiled_mma(")
        self.emit(f"    cute.nvgpu.warp.MmaF16BF16Op({kind}, Float32, {MMA}),")
        self.emit(f"    cute.make_layout(({down}, {across}, 1)),")
        self.emit(")")
        self.emit(f"{name}_thread = {name}.get_slice(tid)")
        self.emit(f"{name}_at = {name}_thread.partition_C(cute.make_identity_tensor(({m}, {n})))")
        self.emit(f"{name}_at_shape = {name}_thread.partition_shape_C(({m}, {n}))")
        self.names.taken |= {f"{name}_thread", f"{name}_at", f"{name}_at_shape"}

    def _product(self, p: Product) -> None:
        """Stage both operands in shared memory, then let each warp multiply its part."""
        m, n, k = p.tile
        acc, dtype = self.python[p.acc], p.left.dtype
        mma = self.tiled[m, n, dtype]
        staged = []
        for axis, extent in ((p.m, m), (p.n, n)):
            name = self.names.fresh(f"{p.acc}_{'left' if axis == p.m else 'right'}")
            self._at_smem(name, dtype, (extent, k), row=k + 8)  # 8 more: no bank conflicts
            staged.append(name)
        with self.under(p.uniform):
            self.emit(f"# {p.acc}[{p.m}, {p.n}] += over {p.k}: {k}, on tensor cores")
            self.emit("cute.arch.sync_threads()")
            self._stage(p, staged[0], p.m, p.left, (*p.rows, *p.depth))
            self._stage(p, staged[1], p.n, p.right, (*p.columns, *p.depth))
            self.emit("cute.arch.sync_threads()")
            parts = [self.names.fresh(f"{s}_part") for s in staged]
            fragments = [self.names.fresh(f"{s}_frag") for s in staged]
            for side, s, part, fragment in zip("AB", staged, parts, fragments, strict=True):
                self.emit(f"{part} = {mma}_thread.partition_{side}({s})")
                self.emit(f"{fragment} = {mma}.make_fragment_{side}({part})")
            step = self.names.fresh("step")
            with self.block(f"for {step} in cutlass.range_constexpr({k // MMA[2]}):"):
                at = f"[None, None, {step}]"
                for part, fragment in zip(parts, fragments, strict=True):
                    self.emit(f"cute.autovec_copy({part}{at}, {fragment}{at})")
                pair = ", ".join(f + at for f in fragments)
                self.emit(f"cute.gemm({mma}, {acc}, {pair}, {acc})")

    def _stage(
        self, p: Product, target: str, axis: str, value: Expr, where: Sequence[Expr]
    ) -> None:
        """Copy an operand's block to shared memory as [axis, depth], 0 where it is masked out."""
        last = value.indices[-1] if isinstance(value, Read) and value.indices else None
        along = axis if last is not None and axis in variables(last) else p.k
        order = (p.k, axis) if along == axis else (axis, p.k)
        nest = Nest(p.nest.node, order, tuple(p.nest.extent(a) for a in order), (), ())
        saved = dict(self.scope)
        with self._walk(nest, order):
            place = f"{target}[{self.scope[axis]}, {self.scope[p.k]}]"
            if where:
                self.emit(f"{place} = {constant(0.0, value.dtype)}")
            with self.under(where):
                self.emit(f"{place} = {self.print(value)}")
        self.scope.clear()
        self.scope.update(saved)
        self.slot = ""


def _axis(name: str, extent: int) -> Axis:
    return Axis(name, Const(extent, i64))


def _peel(
    body: tuple[Stmt, ...],
) -> tuple[list[tuple[str, Expr]], list[Expr], tuple[Stmt, ...], int]:
    """The grid axes around a program, their conditions, the program, its number of warps."""
    grid: list[tuple[str, Expr]] = []
    where: list[Expr] = []
    warps = DEFAULT_WARPS
    while len(body) == 1 and isinstance(body[0], Loop) and body[0].kind == "grid":
        loop = body[0]
        grid.append((loop.axis.name, loop.axis.extent))
        where.extend(loop.where)
        warps = dict(loop.hints).get("num_warps", warps)
        if not 1 <= warps <= 32:
            raise refuse(loop, "`num_warps` must be from 1 to 32")
        body = loop.body
    return grid, where, body, warps

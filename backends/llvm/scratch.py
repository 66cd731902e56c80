"""Scratch memory that outlives a call: each place that allocates keeps the block of the last call,
one for each thread of a team, so that the next call finds it, its pages mapped and warm.

A block is taken and put back by atomic exchanges: a second call at the same time finds none, makes
its own, and one of the two is freed in the end. `kir.release` frees what is kept.
"""

from __future__ import annotations

from kir.backends.llvm.builder import COLD, Builder, Module, V

THREADS = 64
"""Slots of a place; threads beyond share them."""
KEPT_BYTES = 1 << 28
"""Larger blocks go back to the system."""
ROW = "[8 x ptr]"
"""A slot has a cache line of its own."""
SLOTS = f"[{THREADS} x {ROW}]"
RELEASE = "kir.release"
_PLACE = "@kir.kept."


def take(b: Builder, size: V, threads: bool) -> tuple[V, V]:
    """The slot of a new place, and a block of at least `size` bytes, aligned to 64. With
    `threads`, libgomp's functions say which thread runs."""
    module = b.module
    if RELEASE not in module.made:
        module.made.add(RELEASE)
        module.functions.append(FUNCTIONS)
        module.declare("aligned_alloc", "noalias ptr", ["i64", "i64"], "nounwind")
        module.declare("abort", "void", [], "noreturn nounwind")
        module.declare("free", "void", ["ptr"], "nounwind")
    place = f"{_PLACE}{len([n for n in module.made if n.startswith(_PLACE)])}"
    module.made.add(place)
    module.functions.append(f"{place} = internal global {SLOTS} zeroinitializer, align 64\n")
    slot = V(place, "ptr")
    if threads:
        me = b.convert("zext", b.call("omp_get_thread_num", "i32", 0), "i64")
        here = b.op("urem", me, V(str(THREADS), "i64"))
        slot = b.emit(f"getelementptr {ROW}, {slot}, {here}", "ptr")
    return slot, b.emit(f"call noalias ptr @kir.take({slot}, {size})", "ptr")


def give(slot: V, block: V) -> str:
    """The instruction that puts a block back."""
    return f"  call void @kir.give({slot}, {block})"


def finish(module: Module) -> None:
    """Once, when all functions are written: what frees the blocks of all places."""
    places = sorted(n for n in module.made if n.startswith(_PLACE))
    if not places:
        return
    calls = "\n".join(f"  call void @kir.clear(ptr {p})" for p in places)
    module.functions.append(RELEASING.replace("CALLS", calls))


FUNCTIONS = f"""define internal noalias ptr @kir.take(ptr %slot, i64 %size) {COLD} {{
  %had = atomicrmw xchg ptr %slot, ptr null acquire
  %none = icmp eq ptr %had, null
  br i1 %none, label %make, label %look
look:
  %capacity = load i64, ptr %had
  %fits = icmp uge i64 %capacity, %size
  br i1 %fits, label %good, label %drop
drop:
  call void @free(ptr %had)
  br label %make
make:
  %more = add i64 %size, 127
  %total = and i64 %more, -64
  %new = call noalias ptr @aligned_alloc(i64 64, i64 %total)
  %failed = icmp eq ptr %new, null
  br i1 %failed, label %stop, label %fresh
stop:
  call void @abort()
  unreachable
fresh:
  store i64 %size, ptr %new
  br label %good
good:
  %block = phi ptr [ %had, %look ], [ %new, %fresh ]
  %usable = getelementptr i8, ptr %block, i64 64
  ret ptr %usable
}}
define internal void @kir.give(ptr %slot, ptr %usable) {COLD} {{
  %block = getelementptr i8, ptr %usable, i64 -64
  %capacity = load i64, ptr %block
  %large = icmp ugt i64 %capacity, {KEPT_BYTES}
  br i1 %large, label %drop, label %keep
keep:
  %other = atomicrmw xchg ptr %slot, ptr %block acq_rel
  br label %drop
drop:
  %useless = phi ptr [ %block, %0 ], [ %other, %keep ]
  call void @free(ptr %useless)
  ret void
}}
"""

RELEASING = f"""define internal void @kir.clear(ptr %place) {COLD} {{
  br label %again
again:
  %k = phi i64 [ 0, %0 ], [ %next, %again ]
  %slot = getelementptr {ROW}, ptr %place, i64 %k
  %block = atomicrmw xchg ptr %slot, ptr null acq_rel
  call void @free(ptr %block)
  %next = add i64 %k, 1
  %more = icmp ult i64 %next, {THREADS}
  br i1 %more, label %again, label %done
done:
  ret void
}}
define hidden void @{RELEASE}() {COLD} {{
CALLS
  ret void
}}
@llvm.global_dtors = appending global [1 x {{ i32, ptr, ptr }}]
  [{{ i32, ptr, ptr }} {{ i32 65535, ptr @{RELEASE}, ptr null }}]
"""
"""A library that is unloaded releases; code in memory is made to, by who maps it."""

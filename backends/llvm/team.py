"""Teams of threads through libgomp: whether a region gets one, how large, and who runs what.

The region's iterations are cut into one equal range for each thread, so that a thread meets the
same rows in one region after the other; it takes chunks of its own range from the front, and when
that is used up, of those of its neighbours. Each range has a counter in a cache line of its own,
which nobody else touches until the range's owner falls behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kir.backends.llvm.builder import COLD, Builder, Module, V, integer
from kir.backends.llvm.machine import Machine

GRAIN = 1 << 20
"""Work (see `work`) that is worth a thread: some 10 microseconds, several times what it costs to
start and join a team whose threads still wait for it."""
CHUNK = 1 << 17
"""Work that a thread takes at least at a time: above a microsecond."""
SHARES = 16
"""Chunks of a range, where they are not too small."""

ARGUMENTS = {
    "gomp": ("i64 %begin", "i64 %end", "ptr %team", "ptr %turn"),
    "range": ("i64 %begin", "i64 %end"),
    "sequential": ("i64 %begin", "i64 %end"),
}
"""The last arguments of the function of a region. `%team` is null outside of a team."""
HEADER = 4
"""Words of a team before its context: the total, the number of ranges, the chunk, the counters."""


@contextmanager
def ranges(b: Builder, machine: Machine) -> Iterator[tuple[V, V]]:
    """Code for each range of iterations that the running thread gets."""
    begin, end = V("%begin", "i64"), V("%end", "i64")
    if machine.grid != "gomp":
        yield begin, end
        return
    if "kir.team" not in b.module.made:
        b.module.made.add("kir.team")
        b.module.functions += [NEXT, TEAM, LAUNCH]
        b.module.declare("omp_get_max_threads", "i32", [])
        b.module.declare("GOMP_parallel", "void", ["ptr", "ptr", "i32", "i32"])
        b.module.declare("llvm.abs.i32", "i32", ["i32", "i1"])
        b.module.declare("llvm.smin.i64", "i64", ["i64", "i64"])
        b.module.declare("llvm.smax.i64", "i64", ["i64", "i64"])
    again, more, done = b.fresh("range"), b.fresh("more"), b.fresh("finished")
    first, last = V("%" + b.fresh("begin"), "i64"), V("%" + b.fresh("end"), "i64")
    other, stop = V("%" + b.fresh("begin"), "i64"), V("%" + b.fresh("end"), "i64")
    pair = "%" + b.fresh("pair")
    before = b.block
    b.jump(again)
    b.label(again)
    b.line(f"{first.ref} = phi i64 [ {begin.ref}, %{before} ], [ {other.ref}, %{more} ]")
    b.line(f"{last.ref} = phi i64 [ {end.ref}, %{before} ], [ {stop.ref}, %{more} ]")
    yield first, last
    _next(b, pair, "ptr %team, ptr %turn", other, stop)
    b.branch(b.icmp("slt", other, stop), more, done)
    b.label(more)
    b.jump(again)
    b.label(done)


def _next(b: Builder, pair: str, arguments: str, begin: V, end: V) -> None:
    b.line(f"{pair} = call {{i64, i64}} @kir.next({arguments})")
    b.line(f"{begin.ref} = extractvalue {{i64, i64}} {pair}, 0")
    b.line(f"{end.ref} = extractvalue {{i64, i64}} {pair}, 1")


def launch(b: Builder, region: V, member: V, values: Sequence[V], total: V, work: V) -> None:
    """Run all of a region: the function `region` on this thread, or where the work is worth it
    `member` (see there) on a team, with `values`."""
    listed = ", ".join(map(str, [*values, integer(0), total]))
    everything = f"call void {region.ref}({listed}, ptr null, ptr null)"
    if total.constant is not None and total.constant < 2:
        b.line(everything)
        return
    alone, many, done = b.fresh("alone"), b.fresh("many"), b.fresh("joined")
    threads = b.emit(f"call i32 @kir.team({work}, {total}, i32 %threads)", "i32")
    b.branch(b.icmp("eq", threads, integer(1, "i32")), alone, many)
    b.label(alone)
    b.line(everything)
    b.jump(done)
    b.label(many)
    context = b.alloca("i64", HEADER + len(values), 64)
    for at, v in enumerate(values):
        b.store(v, b.gep(context, "i64", integer(HEADER + at)), 8)
    b.line(f"call void @kir.launch({member}, {context}, {work}, {total}, {threads})")
    b.jump(done)
    b.label(done)


def _loaded(b: Builder, kinds: Sequence[str], at: int) -> list[str]:
    context = V("%context", "ptr")
    return [
        str(b.load(b.gep(context, "i64", integer(k + at)), ty, 0, 8)) for k, ty in enumerate(kinds)
    ]


def member(module: Module, name: str, kinds: Sequence[str]) -> V:
    """What each thread of a team runs: the function `name`, from the first range it gets."""
    b = Builder(module)
    turn = b.alloca("i64", 2, 8)
    me = b.convert("sext", b.call("omp_get_thread_num", "i32", 0), "i64")
    b.store(me, turn, 8)
    b.store(integer(0), b.gep(turn, "i64", integer(1)), 8)
    begin, end = V("%begin", "i64"), V("%end", "i64")
    _next(b, "%pair", f"ptr %context, {turn}", begin, end)
    with b.when(b.icmp("slt", begin, end)):
        listed = ", ".join([*_loaded(b, kinds, HEADER), str(begin), str(end)])
        b.line(f"call void @{name}({listed}, ptr %context, {turn})")
    b.define(f"define internal void @{name}.thread(ptr %context)", COLD)
    return V(f"@{name}.thread", "ptr")


def hand_out(b: Builder, name: str, values: Sequence[V], kinds: Sequence[str], total: V) -> None:
    """Leave it to a run-time system: `kir_parallel(thread, context, total)` calls
    `thread(context, begin, end)` on ranges that cover all iterations."""
    context = b.alloca("i64", max(1, len(values)), 64)
    for k, v in enumerate(values):
        b.store(v, b.gep(context, "i64", integer(k)), 8)
    inner = Builder(b.module)
    listed = ", ".join([*_loaded(inner, kinds, 0), "i64 %begin", "i64 %end"])
    inner.line(f"call void @{name}({listed})")
    inner.define(f"define void @{name}.thread(ptr %context, i64 %begin, i64 %end)", "nounwind")
    b.call("kir_parallel", "void", 0, V(f"@{name}.thread", "ptr"), context, total)


TEAM = f"""define internal i32 @kir.team(i64 %work, i64 %total, i32 %threads) {COLD} {{
  %forced = icmp slt i32 %threads, 0
  %given = icmp ne i32 %threads, 0
  %size = call i32 @llvm.abs.i32(i32 %threads, i1 false)
  %max = call i32 @omp_get_max_threads()
  %most = select i1 %given, i32 %size, i32 %max
  %many = sext i32 %most to i64
  %parts = sdiv i64 %work, {GRAIN}
  %worth = select i1 %forced, i64 %total, i64 %parts
  %limit = call i64 @llvm.smin.i64(i64 %worth, i64 %total)
  %some = call i64 @llvm.smax.i64(i64 %limit, i64 1)
  %chosen = call i64 @llvm.smin.i64(i64 %many, i64 %some)
  %count = trunc i64 %chosen to i32
  ret i32 %count
}}
"""
"""The threads that a region gets: as many as its work is worth and its iterations can use, and at
most `%threads` (0: OpenMP's default); exactly that many below 0, as far as there are iterations."""

LAUNCH = f"""define internal void @kir.launch(
    ptr %member, ptr %context, i64 %work, i64 %total, i32 %threads) {COLD} {{
entry:
  %count = sext i32 %threads to i64
  %counters = alloca [8 x i64], i64 %count, align 64
  br label %head
head:
  %k = phi i64 [ 0, %entry ], [ %next, %head ]
  %part = mul i64 %total, %k
  %start = sdiv i64 %part, %count
  %counter = getelementptr [8 x i64], ptr %counters, i64 %k
  store i64 %start, ptr %counter, align 8
  %next = add i64 %k, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %head, label %begin
begin:
  %shares = mul i64 %count, {SHARES}
  %share = sdiv i64 %total, %shares
  %chunks = sdiv i64 %work, {CHUNK}
  %most = add i64 %chunks, 1
  %least = sdiv i64 %total, %most
  %larger = call i64 @llvm.smax.i64(i64 %share, i64 %least)
  %chunk = call i64 @llvm.smax.i64(i64 %larger, i64 1)
  store i64 %total, ptr %context, align 8
  %count.at = getelementptr i64, ptr %context, i64 1
  store i64 %count, ptr %count.at, align 8
  %chunk.at = getelementptr i64, ptr %context, i64 2
  store i64 %chunk, ptr %chunk.at, align 8
  %counters.at = getelementptr i64, ptr %context, i64 3
  store ptr %counters, ptr %counters.at, align 8
  call void @GOMP_parallel(ptr %member, ptr %context, i32 %threads, i32 0)
  ret void
}}
"""
"""Starts a team of `%threads` on a region of `%total` iterations, of `%work` in all, and waits for
it. `%context` has the region's arguments after its header, which is written here."""

NEXT = f"""define internal {{i64, i64}} @kir.next(ptr %team, ptr %turn) {COLD} {{
  %none = icmp eq ptr %team, null
  br i1 %none, label %nothing, label %start
start:
  %total = load i64, ptr %team
  %count.at = getelementptr i64, ptr %team, i64 1
  %count = load i64, ptr %count.at
  %chunk.at = getelementptr i64, ptr %team, i64 2
  %chunk = load i64, ptr %chunk.at
  %counters.at = getelementptr i64, ptr %team, i64 3
  %counters = load ptr, ptr %counters.at
  %me = load i64, ptr %turn
  %done.at = getelementptr i64, ptr %turn, i64 1
  br label %look
look:
  %done = load i64, ptr %done.at
  %left = icmp slt i64 %done, %count
  br i1 %left, label %try, label %nothing
try:
  %sum = add i64 %me, %done
  %whose = urem i64 %sum, %count
  %counter = getelementptr [8 x i64], ptr %counters, i64 %whose
  %following = add i64 %whose, 1
  %product = mul i64 %total, %following
  %last = sdiv i64 %product, %count
  %seen = load atomic i64, ptr %counter monotonic, align 8
  %used = icmp sge i64 %seen, %last
  br i1 %used, label %other, label %take
take:
  %begin = atomicrmw add ptr %counter, i64 %chunk monotonic
  %good = icmp slt i64 %begin, %last
  br i1 %good, label %found, label %other
other:
  %more = add i64 %done, 1
  store i64 %more, ptr %done.at
  br label %look
found:
  %reach = add i64 %begin, %chunk
  %below = icmp slt i64 %reach, %last
  %end = select i1 %below, i64 %reach, i64 %last
  %half = insertvalue {{i64, i64}} poison, i64 %begin, 0
  %pair = insertvalue {{i64, i64}} %half, i64 %end, 1
  ret {{i64, i64}} %pair
nothing:
  ret {{i64, i64}} zeroinitializer
}}
"""
"""The next range of iterations for a thread, empty when none is left. `%turn` is the thread's
number and how many of the team's ranges it has seen to the end."""

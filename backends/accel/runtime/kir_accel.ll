; The reference implementation of kir_accel.h, in LLVM IR so that one text serves every triple
; without a cross compiler: the host's (the simulator) and RISC-V's (QEMU). It names no triple and
; no data layout; pointers are 64 bits wide.

%kir_pe = type { i64, i64, ptr, i64, i64, i64, i64, ptr, i64, [4 x [3 x i64]], i64, i64, i64, i64, i64, i64, [16 x %transfer] }
;                0    1    2    3    4    5    6    7    8    9                10   11   12   13   14   15   16
%transfer = type { ptr, ptr, i64, i64, i64, i64 }
%range = type { ptr, i64 }

; Record a fault, unless there is one already.
define internal void @kir_fault(ptr %pe, i64 %code) #0 {
  %p = getelementptr %kir_pe, ptr %pe, i64 0, i32 10
  %old = load i64, ptr %p
  %none = icmp eq i64 %old, 0
  %new = select i1 %none, i64 %code, i64 %old
  store i64 %new, ptr %p
  ret void
}

define internal void @kir_count(ptr %counter, i64 %by) #0 {
  %old = load i64, ptr %counter
  %new = add i64 %old, %by
  store i64 %new, ptr %counter
  ret void
}

; Whether [p, p + (rows - 1) * stride + row) lies within [base, base + bytes); rows, row > 0,
; stride >= 0. Computed in i128: nothing overflows.
define internal i1 @kir_within(ptr %p, i64 %rows, i64 %row, i64 %stride, ptr %base, i64 %bytes) #0 {
  %p0 = ptrtoint ptr %p to i64
  %b0 = ptrtoint ptr %base to i64
  %p1 = zext i64 %p0 to i128
  %b1 = zext i64 %b0 to i128
  %rows1 = sext i64 %rows to i128
  %row1 = sext i64 %row to i128
  %stride1 = sext i64 %stride to i128
  %bytes1 = sext i64 %bytes to i128
  %last = sub i128 %rows1, 1
  %span = mul i128 %last, %stride1
  %size = add i128 %span, %row1
  %end = add i128 %p1, %size
  %limit = add i128 %b1, %bytes1
  %low = icmp uge i128 %p1, %b1
  %high = icmp ule i128 %end, %limit
  %ok = and i1 %low, %high
  ret i1 %ok
}

define internal i1 @kir_in_local(ptr %pe, ptr %p, i64 %rows, i64 %row, i64 %stride) #0 {
  %base.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 2
  %base = load ptr, ptr %base.p
  %bytes.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 3
  %bytes = load i64, ptr %bytes.p
  %ok = call i1 @kir_within(ptr %p, i64 %rows, i64 %row, i64 %stride, ptr %base, i64 %bytes)
  ret i1 %ok
}

define internal i1 @kir_in_tensor(ptr %pe, ptr %p, i64 %rows, i64 %row, i64 %stride) #0 {
entry:
  %table.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 7
  %table = load ptr, ptr %table.p
  %count.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 8
  %count = load i64, ptr %count.p
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %step ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %try, label %no
try:
  %base.p = getelementptr %range, ptr %table, i64 %i, i32 0
  %base = load ptr, ptr %base.p
  %bytes.p = getelementptr %range, ptr %table, i64 %i, i32 1
  %bytes = load i64, ptr %bytes.p
  %ok = call i1 @kir_within(ptr %p, i64 %rows, i64 %row, i64 %stride, ptr %base, i64 %bytes)
  br i1 %ok, label %yes, label %step
step:
  %next = add i64 %i, 1
  br label %head
yes:
  ret i1 true
no:
  ret i1 false
}

; Check a transfer and put it in the queue.
define internal void @kir_transfer(ptr %pe, ptr %local, ptr %global, i64 %rows, i64 %row, i64 %local_stride, i64 %global_stride, i1 %load) #0 {
entry:
  %none0 = icmp eq i64 %rows, 0
  %none1 = icmp eq i64 %row, 0
  %none = or i1 %none0, %none1
  br i1 %none, label %done, label %size
size:
  %max.row.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 5
  %max.row = load i64, ptr %max.row.p
  %max.rows.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 6
  %max.rows = load i64, ptr %max.rows.p
  %big0 = icmp ugt i64 %row, %max.row
  %big1 = icmp ugt i64 %rows, %max.rows
  %big2 = icmp slt i64 %local_stride, 0
  %big3 = icmp slt i64 %global_stride, 0
  %big4 = or i1 %big0, %big1
  %big5 = or i1 %big2, %big3
  %big = or i1 %big4, %big5
  br i1 %big, label %bad.size, label %align
align:
  %al.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 4
  %al = load i64, ptr %al.p
  %mask = sub i64 %al, 1
  %li = ptrtoint ptr %local to i64
  %gi = ptrtoint ptr %global to i64
  %o0 = or i64 %li, %gi
  %o1 = or i64 %o0, %row
  %one = icmp eq i64 %rows, 1
  %o2 = or i64 %local_stride, %global_stride
  %o3 = select i1 %one, i64 0, i64 %o2
  %o4 = or i64 %o1, %o3
  %o5 = and i64 %o4, %mask
  %odd = icmp ne i64 %o5, 0
  br i1 %odd, label %bad.align, label %local.check
local.check:
  %l.ok = call i1 @kir_in_local(ptr %pe, ptr %local, i64 %rows, i64 %row, i64 %local_stride)
  br i1 %l.ok, label %global.check, label %bad.local
global.check:
  %g.ok = call i1 @kir_in_tensor(ptr %pe, ptr %global, i64 %rows, i64 %row, i64 %global_stride)
  br i1 %g.ok, label %room, label %bad.global
room:
  %n.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 15
  %n.old = load i64, ptr %n.p
  %full = icmp uge i64 %n.old, 16
  br i1 %full, label %drain, label %push
drain:
  call void @kir_dma_wait(ptr %pe)
  br label %push
push:
  %n = load i64, ptr %n.p
  %q = getelementptr %kir_pe, ptr %pe, i64 0, i32 16, i64 %n
  %dst = select i1 %load, ptr %local, ptr %global
  %src = select i1 %load, ptr %global, ptr %local
  %ds = select i1 %load, i64 %local_stride, i64 %global_stride
  %ss = select i1 %load, i64 %global_stride, i64 %local_stride
  store ptr %dst, ptr %q
  %q1 = getelementptr %transfer, ptr %q, i64 0, i32 1
  store ptr %src, ptr %q1
  %q2 = getelementptr %transfer, ptr %q, i64 0, i32 2
  store i64 %rows, ptr %q2
  %q3 = getelementptr %transfer, ptr %q, i64 0, i32 3
  store i64 %row, ptr %q3
  %q4 = getelementptr %transfer, ptr %q, i64 0, i32 4
  store i64 %ds, ptr %q4
  %q5 = getelementptr %transfer, ptr %q, i64 0, i32 5
  store i64 %ss, ptr %q5
  %n1 = add i64 %n, 1
  store i64 %n1, ptr %n.p
  %bytes = mul i64 %rows, %row
  %c0 = getelementptr %kir_pe, ptr %pe, i64 0, i32 11
  call void @kir_count(ptr %c0, i64 %bytes)
  %c1 = getelementptr %kir_pe, ptr %pe, i64 0, i32 12
  call void @kir_count(ptr %c1, i64 1)
  br label %done
bad.local:
  call void @kir_fault(ptr %pe, i64 1)
  br label %done
bad.global:
  call void @kir_fault(ptr %pe, i64 2)
  br label %done
bad.align:
  call void @kir_fault(ptr %pe, i64 3)
  br label %done
bad.size:
  call void @kir_fault(ptr %pe, i64 4)
  br label %done
done:
  ret void
}

define void @kir_dma_load(ptr %pe, ptr %local, ptr %global, i64 %rows, i64 %row, i64 %local_stride, i64 %global_stride) #1 {
  call void @kir_transfer(ptr %pe, ptr %local, ptr %global, i64 %rows, i64 %row, i64 %local_stride, i64 %global_stride, i1 true)
  ret void
}

define void @kir_dma_store(ptr %pe, ptr %global, ptr %local, i64 %rows, i64 %row, i64 %global_stride, i64 %local_stride) #1 {
  call void @kir_transfer(ptr %pe, ptr %local, ptr %global, i64 %rows, i64 %row, i64 %local_stride, i64 %global_stride, i1 false)
  ret void
}

; Do all that is in the queue, in order.
define void @kir_dma_wait(ptr %pe) #1 {
entry:
  %n.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 15
  %n = load i64, ptr %n.p
  br label %transfers
transfers:
  %t = phi i64 [ 0, %entry ], [ %t.next, %rows.done ]
  %t.more = icmp slt i64 %t, %n
  br i1 %t.more, label %begin, label %end
begin:
  %q = getelementptr %kir_pe, ptr %pe, i64 0, i32 16, i64 %t
  %dst = load ptr, ptr %q
  %q1 = getelementptr %transfer, ptr %q, i64 0, i32 1
  %src = load ptr, ptr %q1
  %q2 = getelementptr %transfer, ptr %q, i64 0, i32 2
  %rows = load i64, ptr %q2
  %q3 = getelementptr %transfer, ptr %q, i64 0, i32 3
  %row = load i64, ptr %q3
  %q4 = getelementptr %transfer, ptr %q, i64 0, i32 4
  %ds = load i64, ptr %q4
  %q5 = getelementptr %transfer, ptr %q, i64 0, i32 5
  %ss = load i64, ptr %q5
  br label %rows.head
rows.head:
  %r = phi i64 [ 0, %begin ], [ %r.next, %row.move ]
  %r.more = icmp slt i64 %r, %rows
  br i1 %r.more, label %row.move, label %rows.done
row.move:
  %d.off = mul i64 %r, %ds
  %s.off = mul i64 %r, %ss
  %d = getelementptr i8, ptr %dst, i64 %d.off
  %s = getelementptr i8, ptr %src, i64 %s.off
  %moved = call ptr @memcpy(ptr %d, ptr %s, i64 %row)
  %r.next = add i64 %r, 1
  br label %rows.head
rows.done:
  %t.next = add i64 %t, 1
  br label %transfers
end:
  store i64 0, ptr %n.p
  ret void
}

; --- the matrix engine --------------------------------------------------------------------------

define internal float @kir_f16(i16 %h) #0 {
  %w = zext i16 %h to i32
  %s = and i32 %w, 32768
  %sign = shl i32 %s, 16
  %em = and i32 %w, 32767
  %wide = shl i32 %em, 13
  %normal = add i32 %wide, 939524096              ; (127 - 15) << 23
  %special = or i32 %wide, 2139095040             ; infinity and NaN
  %is.special = icmp uge i32 %em, 31744
  %is.small = icmp ult i32 %em, 1024
  %em.f = uitofp i32 %em to float
  %small.f = fmul float %em.f, 0x3E70000000000000 ; * 2^-24: zero and subnormals
  %small = bitcast float %small.f to i32
  %a = select i1 %is.special, i32 %special, i32 %normal
  %b = select i1 %is.small, i32 %small, i32 %a
  %bits = or i32 %b, %sign
  %f = bitcast i32 %bits to float
  ret float %f
}

; Element `index` of a matrix of this mode (not i8), as f32.
define internal float @kir_element(i64 %mode, ptr %base, i64 %index) #0 {
entry:
  switch i64 %mode, label %f32 [ i64 1, label %bf16
                                 i64 2, label %f16 ]
f32:
  %p0 = getelementptr float, ptr %base, i64 %index
  %v0 = load float, ptr %p0
  ret float %v0
bf16:
  %p1 = getelementptr i16, ptr %base, i64 %index
  %h1 = load i16, ptr %p1
  %w1 = zext i16 %h1 to i32
  %s1 = shl i32 %w1, 16
  %v1 = bitcast i32 %s1 to float
  ret float %v1
f16:
  %p2 = getelementptr i16, ptr %base, i64 %index
  %h2 = load i16, ptr %p2
  %v2 = call float @kir_f16(i16 %h2)
  ret float %v2
}

; acc += a * b, for one element of each.
define internal void @kir_mac(i64 %mode, ptr %acc, i64 %ci, ptr %a, i64 %ai, ptr %b, i64 %bi) #0 {
entry:
  %is.i8 = icmp eq i64 %mode, 3
  br i1 %is.i8, label %int, label %float
float:
  %x = call float @kir_element(i64 %mode, ptr %a, i64 %ai)
  %y = call float @kir_element(i64 %mode, ptr %b, i64 %bi)
  %cp = getelementptr float, ptr %acc, i64 %ci
  %c = load float, ptr %cp
  %xy = fmul float %x, %y
  %sum = fadd float %c, %xy
  store float %sum, ptr %cp
  ret void
int:
  %xp = getelementptr i8, ptr %a, i64 %ai
  %x8 = load i8, ptr %xp
  %yp = getelementptr i8, ptr %b, i64 %bi
  %y8 = load i8, ptr %yp
  %xi = sext i8 %x8 to i32
  %yi = sext i8 %y8 to i32
  %dp = getelementptr i32, ptr %acc, i64 %ci
  %d = load i32, ptr %dp
  %xyi = mul i32 %xi, %yi
  %di = add i32 %d, %xyi
  store i32 %di, ptr %dp
  ret void
}

; Whether all of x[rows, columns] (strides and size in elements of `size` bytes) is in local memory.
define internal i1 @kir_operand(ptr %pe, ptr %x, i64 %row, i64 %column, i64 %rows, i64 %columns, i64 %size) #0 {
  %neg0 = icmp slt i64 %row, 0
  %neg1 = icmp slt i64 %column, 0
  %neg = or i1 %neg0, %neg1
  %c1 = sub i64 %columns, 1
  %span = mul i64 %c1, %column
  %elements = add i64 %span, 1
  %bytes = mul i64 %elements, %size
  %stride = mul i64 %row, %size
  %in = call i1 @kir_in_local(ptr %pe, ptr %x, i64 %rows, i64 %bytes, i64 %stride)
  %pos = xor i1 %neg, true
  %ok = and i1 %in, %pos
  ret i1 %ok
}

define void @kir_matrix_mma(ptr %pe, i64 %mode, ptr %acc, i64 %acc_row, i64 %acc_column, ptr %a, i64 %a_row, i64 %a_column, ptr %b, i64 %b_row, i64 %b_column, i64 %m, i64 %n, i64 %k) #1 {
entry:
  %none0 = icmp eq i64 %m, 0
  %none1 = icmp eq i64 %n, 0
  %none2 = icmp eq i64 %k, 0
  %none3 = or i1 %none0, %none1
  %none = or i1 %none3, %none2
  br i1 %none, label %done, label %mode.check
mode.check:
  %known = icmp ult i64 %mode, 4
  br i1 %known, label %present, label %bad.mode
present:
  %max.m.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 9, i64 %mode, i64 0
  %max.m = load i64, ptr %max.m.p
  %max.n.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 9, i64 %mode, i64 1
  %max.n = load i64, ptr %max.n.p
  %max.k.p = getelementptr %kir_pe, ptr %pe, i64 0, i32 9, i64 %mode, i64 2
  %max.k = load i64, ptr %max.k.p
  %absent = icmp eq i64 %max.m, 0
  br i1 %absent, label %bad.mode, label %block
block:
  %big0 = icmp ugt i64 %m, %max.m
  %big1 = icmp ugt i64 %n, %max.n
  %big2 = icmp ugt i64 %k, %max.k
  %big3 = or i1 %big0, %big1
  %big = or i1 %big3, %big2
  br i1 %big, label %bad.block, label %operands
operands:
  %is.f32 = icmp eq i64 %mode, 0
  %is.i8 = icmp eq i64 %mode, 3
  %size0 = select i1 %is.f32, i64 4, i64 2
  %size = select i1 %is.i8, i64 1, i64 %size0
  %ok0 = call i1 @kir_operand(ptr %pe, ptr %acc, i64 %acc_row, i64 %acc_column, i64 %m, i64 %n, i64 4)
  %ok1 = call i1 @kir_operand(ptr %pe, ptr %a, i64 %a_row, i64 %a_column, i64 %m, i64 %k, i64 %size)
  %ok2 = call i1 @kir_operand(ptr %pe, ptr %b, i64 %b_row, i64 %b_column, i64 %k, i64 %n, i64 %size)
  %ok3 = and i1 %ok0, %ok1
  %ok = and i1 %ok3, %ok2
  br i1 %ok, label %count, label %bad.operand
count:
  %c0 = getelementptr %kir_pe, ptr %pe, i64 0, i32 13
  call void @kir_count(ptr %c0, i64 1)
  %mn = mul i64 %m, %n
  %mnk = mul i64 %mn, %k
  %c1 = getelementptr %kir_pe, ptr %pe, i64 0, i32 14
  call void @kir_count(ptr %c1, i64 %mnk)
  br label %i.head
i.head:
  %i = phi i64 [ 0, %count ], [ %i.next, %i.done ]
  %i.more = icmp slt i64 %i, %m
  br i1 %i.more, label %p.head, label %done
p.head:
  %p = phi i64 [ 0, %i.head ], [ %p.next, %p.done ]
  %p.more = icmp slt i64 %p, %k
  br i1 %p.more, label %j.head, label %i.done
j.head:
  %j = phi i64 [ 0, %p.head ], [ %j.next, %j.body ]
  %j.more = icmp slt i64 %j, %n
  br i1 %j.more, label %j.body, label %p.done
j.body:
  %ci0 = mul i64 %i, %acc_row
  %ci1 = mul i64 %j, %acc_column
  %ci = add i64 %ci0, %ci1
  %ai0 = mul i64 %i, %a_row
  %ai1 = mul i64 %p, %a_column
  %ai = add i64 %ai0, %ai1
  %bi0 = mul i64 %p, %b_row
  %bi1 = mul i64 %j, %b_column
  %bi = add i64 %bi0, %bi1
  call void @kir_mac(i64 %mode, ptr %acc, i64 %ci, ptr %a, i64 %ai, ptr %b, i64 %bi)
  %j.next = add i64 %j, 1
  br label %j.head
p.done:
  %p.next = add i64 %p, 1
  br label %p.head
i.done:
  %i.next = add i64 %i, 1
  br label %i.head
bad.operand:
  call void @kir_fault(ptr %pe, i64 5)
  br label %done
bad.block:
  call void @kir_fault(ptr %pe, i64 6)
  br label %done
bad.mode:
  call void @kir_fault(ptr %pe, i64 7)
  br label %done
done:
  ret void
}

; --- what LLVM itself may call -------------------------------------------------------------------

define ptr @memcpy(ptr %d, ptr %s, i64 %n) #1 {
entry:
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp ult i64 %i, %n
  br i1 %more, label %body, label %end
body:
  %sp = getelementptr i8, ptr %s, i64 %i
  %v = load i8, ptr %sp
  %dp = getelementptr i8, ptr %d, i64 %i
  store i8 %v, ptr %dp
  %next = add i64 %i, 1
  br label %head
end:
  ret ptr %d
}

define ptr @memmove(ptr %d, ptr %s, i64 %n) #1 {
entry:
  %di = ptrtoint ptr %d to i64
  %si = ptrtoint ptr %s to i64
  %up = icmp ule i64 %di, %si
  br i1 %up, label %forward, label %backward
forward:
  %done = call ptr @memcpy(ptr %d, ptr %s, i64 %n)
  ret ptr %d
backward:
  %i = phi i64 [ %n, %entry ], [ %i1, %body ]
  %more = icmp ne i64 %i, 0
  br i1 %more, label %body, label %end
body:
  %i1 = sub i64 %i, 1
  %sp = getelementptr i8, ptr %s, i64 %i1
  %v = load i8, ptr %sp
  %dp = getelementptr i8, ptr %d, i64 %i1
  store i8 %v, ptr %dp
  br label %backward
end:
  ret ptr %d
}

define ptr @memset(ptr %d, i32 %c, i64 %n) #1 {
entry:
  %b = trunc i32 %c to i8
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
  %more = icmp ult i64 %i, %n
  br i1 %more, label %body, label %end
body:
  %dp = getelementptr i8, ptr %d, i64 %i
  store i8 %b, ptr %dp
  %next = add i64 %i, 1
  br label %head
end:
  ret ptr %d
}

; "no-builtins": else LLVM would turn the loop in memcpy into a call of memcpy.
attributes #0 = { nounwind "no-builtins" }
attributes #1 = { nounwind "no-builtins" }

; A whole program for `qemu-riscv64`: read the arena, let every PE run, write the arena back.
; The linker (elf.py) gives `_start`, `kir_syscall`, the arena and its size. The arena begins with
; %header, which the caller fills in with absolute addresses.

%header = type { ptr, ptr, i64, ptr, i64 } ; tensors, dims, PE count, array of kir_pe, phases

@kir_arena = external global i8
@kir_arena_bytes = external global i64
declare i64 @kir_syscall(i64, i64, i64, i64)
declare void @kir_entry(ptr, ptr, ptr, i64)

; Transfer the arena through a file descriptor; syscall 63 reads, 64 writes.
define internal i1 @kir_transfer_arena(i64 %call, i64 %fd) #0 {
entry:
  %arena = ptrtoint ptr @kir_arena to i64
  %bytes = load i64, ptr @kir_arena_bytes
  br label %head
head:
  %done = phi i64 [ 0, %entry ], [ %more, %got ]
  %left = sub i64 %bytes, %done
  %any = icmp sgt i64 %left, 0
  br i1 %any, label %body, label %yes
body:
  %at = add i64 %arena, %done
  %n = call i64 @kir_syscall(i64 %call, i64 %fd, i64 %at, i64 %left)
  %ok = icmp sgt i64 %n, 0
  br i1 %ok, label %got, label %no
got:
  %more = add i64 %done, %n
  br label %head
yes:
  ret i1 true
no:
  ret i1 false
}

; The exit status: 0, 2 where the input is short, 3 where the output cannot be written.
define i64 @kir_main() #0 {
entry:
  %read = call i1 @kir_transfer_arena(i64 63, i64 0)
  br i1 %read, label %begin, label %short
begin:
  %tensors = load ptr, ptr @kir_arena
  %dims.p = getelementptr %header, ptr @kir_arena, i64 0, i32 1
  %dims = load ptr, ptr %dims.p
  %count.p = getelementptr %header, ptr @kir_arena, i64 0, i32 2
  %count = load i64, ptr %count.p
  %pes.p = getelementptr %header, ptr @kir_arena, i64 0, i32 3
  %pes = load ptr, ptr %pes.p
  %phases.p = getelementptr %header, ptr @kir_arena, i64 0, i32 4
  %phases = load i64, ptr %phases.p
  br label %phase.head
phase.head:
  %phase = phi i64 [ 0, %begin ], [ %phase.next, %phase.end ]
  %phase.more = icmp slt i64 %phase, %phases
  br i1 %phase.more, label %head, label %end
head:
  %i = phi i64 [ 0, %phase.head ], [ %next, %body ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %body, label %phase.end
body:
  %offset = mul i64 %i, KIR_PE_BYTES
  %pe = getelementptr i8, ptr %pes, i64 %offset
  call void @kir_entry(ptr %pe, ptr %tensors, ptr %dims, i64 %phase)
  %next = add i64 %i, 1
  br label %head
phase.end:
  %phase.next = add i64 %phase, 1
  br label %phase.head
end:
  %wrote = call i1 @kir_transfer_arena(i64 64, i64 1)
  %status = select i1 %wrote, i64 0, i64 3
  ret i64 %status
short:
  ret i64 2
}

attributes #0 = { nounwind "no-builtins" }

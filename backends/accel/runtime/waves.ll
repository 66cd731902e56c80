; sin and cos of f32 values from 2^28 on, for machines with no C library (Payne and Hanek 1983).
; |x| = m * 2^s, so |x| * 2/pi modulo 4 needs only the bits of 2/pi from bit s - 2 on.

define internal float @kir_wave(float %x, i32 %turn) noinline nounwind {
  %bits = bitcast float %x to i32
  %e.raw = lshr i32 %bits, 23
  %e = and i32 %e.raw, 255
  %low = and i32 %bits, 8388607
  %m.32 = or i32 %low, 8388608
  %m = zext i32 %m.32 to i128
  ; 256 bits of 2/pi, the first s - 2 = e - 152 dropped, then 96 kept
  %drop.32 = sub i32 %e, 152
  %small = icmp slt i32 %drop.32, 0
  %drop.0 = select i1 %small, i32 0, i32 %drop.32
  %drop = zext i32 %drop.0 to i256
  %left = shl i256 73715533492226901901836098385759174607297965327747686705228263945774433027425, %drop
  %right = lshr i256 %left, 160
  %window = trunc i256 %right to i128
  %product = mul i128 %m, %window
  %four = and i128 %product, 79228162514264337593543950335     ; 2^96 - 1: quadrants, modulo 4
  ; the nearest quadrant, and what is left in [-1/2, 1/2)
  %half = add i128 %four, 9903520314283042199192993792         ; 2^93
  %q.128 = lshr i128 %half, 94
  %q.0 = trunc i128 %q.128 to i32
  %whole = shl i128 %q.128, 94
  %rest = sub i128 %four, %whole
  %rest.high = ashr i128 %rest, 30
  %rest.64 = trunc i128 %rest.high to i64
  %rest.f = sitofp i64 %rest.64 to double
  %r = fmul double %rest.f, 0x3BF921FB54442D18                 ; pi/2 * 2^-64
  %r2 = fmul double %r, %r
  ; Taylor's series: within 1e-10 up to pi/4
  %s0 = fmul double %r2, 0xBE5AE64567F544E4
  %s1 = fadd double %s0, 0x3EC71DE3A556C734
  %s2 = fmul double %s1, %r2
  %s3 = fadd double %s2, 0xBF2A01A01A01A01A
  %s4 = fmul double %s3, %r2
  %s5 = fadd double %s4, 0x3F81111111111111
  %s6 = fmul double %s5, %r2
  %s7 = fadd double %s6, 0xBFC5555555555555
  %s8 = fmul double %s7, %r2
  %s9 = fmul double %s8, %r
  %sine = fadd double %s9, %r
  %c0 = fmul double %r2, 0xBE927E4FB7789F5C
  %c1 = fadd double %c0, 0x3EFA01A01A01A01A
  %c2 = fmul double %c1, %r2
  %c3 = fadd double %c2, 0xBF56C16C16C16C17
  %c4 = fmul double %c3, %r2
  %c5 = fadd double %c4, 0x3FA5555555555555
  %c6 = fmul double %c5, %r2
  %c7 = fadd double %c6, 0xBFE0000000000000
  %c8 = fmul double %c7, %r2
  %cosine = fadd double %c8, 1.0
  %q = add i32 %q.0, %turn
  %odd = trunc i32 %q to i1
  %wave = select i1 %odd, double %cosine, double %sine
  %negative.0 = and i32 %q, 2
  %sign.x = lshr i32 %bits, 30
  %sign.2 = and i32 %sign.x, 2
  %is.cos = trunc i32 %turn to i1
  %sign = select i1 %is.cos, i32 0, i32 %sign.2                ; sin is odd, cos is even
  %negative.1 = xor i32 %negative.0, %sign
  %negative = icmp ne i32 %negative.1, 0
  %minus = fneg double %wave
  %signed = select i1 %negative, double %minus, double %wave
  %result = fptrunc double %signed to float
  %special = icmp eq i32 %e, 255
  %final = select i1 %special, float 0x7FF8000000000000, float %result
  ret float %final
}

define internal float @kir_sinf(float %x) noinline nounwind {
  %y = call float @kir_wave(float %x, i32 0)
  ret float %y
}

define internal float @kir_cosf(float %x) noinline nounwind {
  %y = call float @kir_wave(float %x, i32 1)
  ret float %y
}

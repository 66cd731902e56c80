/* The run-time interface of KIR's accelerator target: all that generated code needs of a machine.
 *
 * A kernel is compiled to
 *   void kir_entry(kir_pe *pe, void *const *tensors, const int64_t *dims, int64_t phase);
 * For each phase in turn, every processing element (PE) calls it once, and PE number `pe->pe` of
 * `pe->pe_count` does its share of the phase's `grid`; a phase begins when all PEs have ended the
 * one before. `tensors` holds the inputs, the outputs, then temporaries in shared memory; `dims`
 * the symbolic dims. Nothing else is called but the functions below and memcpy, memmove, memset.
 *
 * kir_accel.ll is the reference implementation, used alike by the simulator and under QEMU. A
 * machine has its own, over its own engines; the checks and the counters are not asked of it.
 */
#ifndef KIR_ACCEL_H
#define KIR_ACCEL_H

#include <stdint.h>

typedef struct { const uint8_t *base; int64_t bytes; } kir_range;

typedef struct { int64_t m, n, k; } kir_block;

typedef struct {
  uint8_t *dst;
  const uint8_t *src;
  int64_t rows, row_bytes, dst_stride, src_stride;
} kir_transfer;

enum { KIR_F32 = 0, KIR_BF16 = 1, KIR_F16 = 2, KIR_I8 = 3, KIR_MODES = 4 }; /* matrix engine */

enum { /* kir_pe.fault: the first thing that went wrong; the faulty request is skipped */
  KIR_OK = 0,
  KIR_DMA_LOCAL = 1,    /* a transfer leaves the scratchpad */
  KIR_DMA_GLOBAL = 2,   /* a transfer leaves every tensor */
  KIR_DMA_ALIGN = 3,    /* an address, stride or row size breaks the DMA's alignment */
  KIR_DMA_SIZE = 4,     /* more rows, or longer ones, than one transfer takes; or fewer than 0 */
  KIR_MMA_LOCAL = 5,    /* an operand of the matrix engine leaves the scratchpad */
  KIR_MMA_BLOCK = 6,    /* a block larger than the engine's */
  KIR_MMA_MODE = 7      /* dtypes that the engine lacks */
};

enum { KIR_QUEUE = 16 };

typedef struct kir_pe {
  int64_t pe, pe_count;
  uint8_t *local;             /* the scratchpad */
  int64_t local_bytes;
  int64_t dma_alignment, dma_max_row_bytes, dma_max_rows;
  const kir_range *tensors;   /* the memory that a transfer may touch */
  int64_t tensor_count;
  kir_block modes[KIR_MODES]; /* the largest block of each mode; m = 0: the mode is absent */
  int64_t fault;
  int64_t dma_bytes, dma_calls, mma_calls, mma_macs; /* counters */
  int64_t pending;
  kir_transfer queue[KIR_QUEUE];
} kir_pe;

/* Begin to move `rows` rows of `row_bytes` bytes; strides are in bytes. Transfers are done in the
 * order of issue, and none is sure to be done before kir_dma_wait returns. They see what the core
 * has stored before they were issued. */
void kir_dma_load(kir_pe *pe, void *local, const void *global, int64_t rows, int64_t row_bytes,
                  int64_t local_stride, int64_t global_stride);
void kir_dma_store(kir_pe *pe, void *global, const void *local, int64_t rows, int64_t row_bytes,
                   int64_t global_stride, int64_t local_stride);
void kir_dma_wait(kir_pe *pe);

/* acc[i, j] += a[i, p] * b[p, j] for i < m, j < n, p < k, all in the scratchpad; strides are in
 * elements. f32, bf16 and f16 accumulate in f32, in the order of p, without fusing; i8 in i32. */
void kir_matrix_mma(kir_pe *pe, int64_t mode, void *acc, int64_t acc_row, int64_t acc_column,
                    const void *a, int64_t a_row, int64_t a_column,
                    const void *b, int64_t b_row, int64_t b_column,
                    int64_t m, int64_t n, int64_t k);

#endif

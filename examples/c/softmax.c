/* A C program that uses a kernel with no Python at run time:

     kir lower examples/softmax.kir --emit so --arch x86-64-v3 -o libsoftmax.so
     cc -std=c99 -O2 examples/c/softmax.c -I. -L. -lsoftmax -lm -Wl,-rpath,. -o softmax
     ./softmax 1000 4096 2
*/
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "libsoftmax.h"

int main(int argc, char **argv) {
  const int64_t rows = argc > 1 ? atoll(argv[1]) : 4, columns = argc > 2 ? atoll(argv[2]) : 1000;
  const int32_t threads = argc > 3 ? (int32_t)atoi(argv[3]) : 0;
  const size_t count = (size_t)rows * (size_t)columns;
  float *x = (float *)malloc(count * sizeof *x), *y = (float *)malloc(count * sizeof *y);
  if (!x || !y) return 2;
  for (size_t i = 0; i < count; i++) x[i] = (float)((i * 2654435761u) % 1000) / 100.0f;

  if (kir_softmax(x, y, rows, columns, threads) != 0) return 3; /* a negative size */

  double worst = 0;
  for (int64_t i = 0; i < rows; i++) {
    double largest = -INFINITY, total = 0;
    for (int64_t j = 0; j < columns; j++) largest = fmax(largest, x[i * columns + j]);
    for (int64_t j = 0; j < columns; j++) total += exp(x[i * columns + j] - largest);
    for (int64_t j = 0; j < columns; j++) {
      const double wanted = exp(x[i * columns + j] - largest) / total;
      worst = fmax(worst, fabs(y[i * columns + j] - wanted) / wanted);
    }
  }
  printf("%s\nworst relative error: %.1e\n", kir_softmax_info, worst);
  free(x);
  free(y);
  return worst < 1e-5 ? 0 : 1;
}

// Order statistics and means of the columns of updates (m, n), for `gpu_order.py`: thread k takes column k.
// Each does what `kernels.py` does on a CPU, in the same order, so that the numbers are the same.

// float32 bits as an integer of the same order, and back: NaN is beyond the infinities.
__device__ inline int order(int bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); }

// Brings ranks first..stop-1 of each column to their places, by the comparators of a network (pairs
// of rows), and takes their mean -> out (n,). The updates are overwritten.
extern "C" __global__ void middle_mean(float *updates, const int *network, float *out, int m,
                                       int comparators, int first, int stop, int n) {
    NUMBER_K_OF(n)
    int *column = (int *)updates + k;
    for (int i = 0; i < m; ++i) {
        int *own = column + (long long)i * n;
        *own = order(*own);
    }
    for (int t = 0; t < comparators; ++t) {
        int *low = column + (long long)network[2 * t] * n;
        int *high = column + (long long)network[2 * t + 1] * n;
        const int a = *low, b = *high;
        *low = a < b ? a : b;
        *high = a < b ? b : a;
    }
    double total = 0;
    for (int i = first; i < stop; ++i) total += __int_as_float(order(column[(long long)i * n]));
    out[k] = total / (stop - first);
}

// The mean of each column -> out (n,).
extern "C" __global__ void mean(const float *updates, float *out, int m, int n) {
    NUMBER_K_OF(n)
    float total = updates[k];
    for (int i = 1; i < m; ++i) total += updates[(long long)i * n + k];
    out[k] = total / m;
}

// The largest value of each column where its side is 1, the smallest where it is -1 -> out (n,);
// NaN where a column has it.
extern "C" __global__ void extremes(const float *updates, const float *sides, float *out, int m,
                                    int n) {
    NUMBER_K_OF(n)
    float best = sides[k] * updates[k];
    for (int i = 1; i < m; ++i) {
        const float value = sides[k] * updates[(long long)i * n + k];
        best = best >= value || best != best ? best : value;
    }
    out[k] = best * sides[k];
}

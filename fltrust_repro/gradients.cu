// The steps between the products of `gpu_gradients.py`. Each thread computes one number of the last
// array named in a kernel's comment, number k of n, or what the comment says.
//
// g counts workers, e a worker's examples. Of a batch, images are (g, channels, e, height, width).
// A layer's inputs end in a 1, and its packed parameters in the bias: one product takes both in.

typedef unsigned char uint8_t;

// Parameters from `start` on of w (d,), moved by the updates (g, d) unless this is the first round:
// weight (outputs, inputs), then bias (outputs,) -> packed (g, outputs, inputs + 1).
extern "C" __global__ void pack(const float *w, const float *updates, float *packed, int d,
                                int start, int outputs, int inputs, int first, int n) {
    NUMBER_K_OF(n)
    const int i = k % (inputs + 1), o = k / (inputs + 1) % outputs, g = k / (inputs + 1) / outputs;
    const int at = start + (i < inputs ? o * inputs + i : outputs * inputs + o);
    packed[k] = first ? w[at] : w[at] + updates[(long long)g * d + at];
}

// Where in x (all, channels, size) number k of images (g, channels, e, size) lies.
static __device__ long long source(int k, const int *rows, int channels, int examples, int size) {
    const int p = k % size, e = k / size % examples, c = k / size / examples % channels;
    const int g = k / size / examples / channels;
    return ((long long)rows[g * examples + e] * channels + c) * size + p;
}

// Examples `rows` (g, e) of x (all, channels, size) -> images (g, channels, e, size).
extern "C" __global__ void gather(const float *x, const int *rows, float *images, int channels,
                                  int examples, int size, int n) {
    NUMBER_K_OF(n)
    images[k] = x[source(k, rows, channels, examples, size)];
}

// The same of pixels. A division rounds as on a CPU; a product with 1 / 255 would not.
extern "C" __global__ void gather_pixels(const uint8_t *x, const int *rows, float *images,
                                         int channels, int examples, int size, int n) {
    NUMBER_K_OF(n)
    images[k] = x[source(k, rows, channels, examples, size)] / 255.0f;
}

// Images -> what a convolution multiplies: (g, channels * kh * kw + 1, e, oh, ow), a 1 at the end.
extern "C" __global__ void patches(const float *images, float *columns, int channels, int examples,
                                   int height, int width, int kh, int kw, int n) {
    NUMBER_K_OF(n)
    const int oh = height - kh + 1, ow = width - kw + 1, rows = channels * kh * kw;
    const int b = k % ow, a = k / ow % oh, e = k / ow / oh % examples;
    const int row = k / ow / oh / examples % (rows + 1), g = k / ow / oh / examples / (rows + 1);
    const int j = row % kw, i = row / kw % kh, c = row / kw / kh;
    columns[k] = row == rows
        ? 1.0f
        : images[(((g * channels + c) * examples + e) * height + a + i) * width + b + j];
}

// The way back: d loss / d columns -> d loss / d images.
extern "C" __global__ void patches_gradient(const float *columns, float *images, int channels,
                                            int examples, int height, int width, int kh, int kw,
                                            int n) {
    NUMBER_K_OF(n)
    const int oh = height - kh + 1, ow = width - kw + 1, rows = channels * kh * kw;
    const int b = k % width, a = k / width % height, e = k / width / height % examples;
    const int c = k / width / height / examples % channels;
    const int g = k / width / height / examples / channels;
    float sum = 0;
    for (int i = 0; i < kh; ++i) {
        for (int j = 0; j < kw; ++j) {
            if (a < i || a - i >= oh || b < j || b - j >= ow) continue;
            const int row = (g * (rows + 1)) + (c * kh + i) * kw + j;
            sum += columns[((row * examples + e) * oh + a - i) * ow + b - j];
        }
    }
    images[k] = sum;
}

// Max pooling of relu(z), windows ph x pw: z (images, height, width) -> pooled (images, oh, ow), and
// where in its image each maximum lies, -1 for relu's 0. The first of equal values counts.
extern "C" __global__ void pool(const float *z, float *pooled, int *place, int height, int width,
                                int ph, int pw, int n) {
    NUMBER_K_OF(n)
    const int oh = height / ph, ow = width / pw;
    const int s = k % ow, r = k / ow % oh, image = k / ow / oh;
    float best = 0;
    int where = -1;
    for (int a = r * ph; a < (r + 1) * ph; ++a) {
        for (int b = s * pw; b < (s + 1) * pw; ++b) {
            const float value = z[(image * height + a) * width + b];
            if (!(value <= best)) {  // NaN goes on, as elsewhere
                best = value;
                where = a * width + b;
            }
        }
    }
    pooled[k] = best;
    place[k] = where;
}

// The way back: d loss / d pooled -> d loss / d z.
extern "C" __global__ void pool_gradient(const float *pooled, const int *place, float *z,
                                         int height, int width, int ph, int pw, int n) {
    NUMBER_K_OF(n)
    const int oh = height / ph, ow = width / pw;
    const int b = k % width, a = k / width % height, image = k / width / height;
    const int r = a / ph, s = b / pw, window = (image * oh + r) * ow + s;
    const int inside = r < oh && s < ow && place[window] == a * width + b;
    z[k] = inside ? pooled[window] : 0.0f;
}

// (g, channels, e, size) -> a dense layer's inputs (g, e, channels * size + 1), as Gluon flattens.
extern "C" __global__ void flatten(const float *images, float *inputs, int channels, int examples,
                                   int size, int n) {
    NUMBER_K_OF(n)
    const int length = channels * size, i = k % (length + 1), e = k / (length + 1) % examples;
    const int g = k / (length + 1) / examples, c = i / size;
    inputs[k] =
        i == length ? 1.0f : images[((g * channels + c) * examples + e) * size + i % size];
}

// The way back: d loss / d inputs -> (g, channels, e, size).
extern "C" __global__ void flatten_gradient(const float *inputs, float *images, int channels,
                                            int examples, int size, int n) {
    NUMBER_K_OF(n)
    const int p = k % size, e = k / size % examples, c = k / size / examples % channels;
    const int g = k / size / examples / channels;
    images[k] = inputs[(g * examples + e) * (channels * size + 1) + c * size + p];
}

// z (rows, length) -> relu(z) and a 1: the next layer's inputs (rows, length + 1).
extern "C" __global__ void relu(const float *z, float *inputs, int length, int n) {
    NUMBER_K_OF(n)
    const int i = k % (length + 1);
    const float value = i < length ? z[k / (length + 1) * length + i] : 1.0f;
    inputs[k] = value < 0 ? 0.0f : value;
}

// The way back: d loss / d inputs, where those are above 0 -> d loss / d z (rows, length).
extern "C" __global__ void relu_gradient(const float *d_inputs, const float *inputs, float *d_z,
                                         int length, int n) {
    NUMBER_K_OF(n)
    const int at = k / length * (length + 1) + k % length;
    d_z[k] = inputs[at] > 0 ? d_inputs[at] : 0.0f;
}

// Logits (g, e, classes) -> in their place d (batch-mean loss) / d logits, 0 beyond a worker's count
// of examples; and each example's loss (g, e), of which thread k computes number k.
extern "C" __global__ void softmax_residual(const int *labels, const int *counts, float *logits,
                                            float *losses, int examples, int classes, int n) {
    NUMBER_K_OF(n)
    const int count = counts[k / examples];
    float *row = logits + (long long)k * classes, top = row[0], total = 0;
    if (k % examples >= count) {
        for (int c = 0; c < classes; ++c) row[c] = 0;
        losses[k] = 0;
        return;
    }
    for (int c = 1; c < classes; ++c) top = row[c] > top ? row[c] : top;
    const float label = row[labels[k]];
    for (int c = 0; c < classes; ++c) {
        row[c] = expf(row[c] - top);
        total += row[c];
    }
    losses[k] = top - label + logf(total);
    for (int c = 0; c < classes; ++c) row[c] = row[c] / (total * count);
    row[labels[k]] -= 1.0f / count;
}

// A gradient (g, outputs, inputs + 1), as `pack` packs -> its place in the updates (g, d), times
// -rate, added unless this is the first round; 0 for a worker without examples. Number k is the
// gradient's.
extern "C" __global__ void step(const float *gradient, const int *counts, float *updates, int d,
                                int start, int outputs, int inputs, int first, float rate, int n) {
    NUMBER_K_OF(n)
    const int i = k % (inputs + 1), o = k / (inputs + 1) % outputs, g = k / (inputs + 1) / outputs;
    const int at = start + (i < inputs ? o * inputs + i : outputs * inputs + o);
    float *own = updates + (long long)g * d + at;
    const float before = first ? 0.0f : *own;
    *own = counts[g] ? before - rate * gradient[k] : 0.0f;
}

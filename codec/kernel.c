/* rANS coding loops: the compiled twin of codec/rans_numpy.py, bit for bit.
 *
 * State 32 bits, renormalised by 16-bit words, probabilities out of 2^14. Symbol i belongs to lane
 * i % num_lanes; all lanes share one word stream, read in symbol order.
 * Called through ctypes; nothing here allocates, and every read and write is bounds-checked.
 * Source: Duda 2013, arXiv:1311.2540; interleaving: Giesen 2014, arXiv:1402.3392.
 */
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdint.h>

#define PRECISION 14
#define LOWER (1u << 16)
#define MAX_LANES 64

#ifdef _WIN32
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

/* cdf: [num_models, alphabet + 1]; models, symbols: [n]. Words go to the END of out[capacity].
 * Returns the number of words, or -1 when an index is out of range or out is too small. */
API int64_t rans_encode(const uint16_t *cdf, int32_t num_models, int32_t alphabet,
                        const uint8_t *models, const uint8_t *symbols, int64_t n, int32_t num_lanes,
                        uint32_t *states, uint16_t *out, int64_t capacity) {
    if (num_lanes < 1 || num_lanes > MAX_LANES) return -1;
    int64_t at = capacity;
    for (int32_t l = 0; l < num_lanes; l++) states[l] = LOWER;
    int32_t lane = (int32_t)(n % num_lanes);
    for (int64_t i = n - 1; i >= 0; i--) {
        lane = lane == 0 ? num_lanes - 1 : lane - 1;
        if (models[i] >= num_models || symbols[i] >= alphabet) return -1;
        const uint16_t *row = cdf + (int64_t)models[i] * (alphabet + 1) + symbols[i];
        uint32_t start = row[0], freq = (uint32_t)row[1] - start, x = states[lane];
        if (x >= (uint64_t)freq << (32 - PRECISION)) {
            if (at == 0) return -1;
            out[--at] = (uint16_t)x;
            x >>= 16;
        }
        states[lane] = ((x / freq) << PRECISION) + x % freq + start;
    }
    return capacity - at;
}

/* lut: [num_models, 256], the symbol that holds slot (index << 6). states: [num_lanes], in and out.
 * Returns the number of words read, or -1 when the stream ends too early. */
API int64_t rans_decode(const uint16_t *cdf, const uint8_t *lut, int32_t num_models,
                        int32_t alphabet, const uint8_t *models, uint8_t *symbols, int64_t n,
                        int32_t num_lanes, uint32_t *states, const uint8_t *words,
                        int64_t num_words) {
    if (num_lanes < 1 || num_lanes > MAX_LANES) return -1;
    int64_t at = 0;
    int32_t lane = 0;
    for (int64_t i = 0; i < n; i++) {
        if (models[i] >= num_models) return -1;
        const uint16_t *row = cdf + (int64_t)models[i] * (alphabet + 1);
        uint32_t x = states[lane], slot = x & ((1u << PRECISION) - 1);
        uint32_t s = lut[((uint32_t)models[i] << 8) + (slot >> (PRECISION - 8))];
        while (row[s + 1] <= slot) s++; /* ends: row[alphabet] is 2^14 > slot */
        x = ((uint32_t)row[s + 1] - row[s]) * (x >> PRECISION) + slot - row[s];
        if (x < LOWER) {
            if (at == num_words) return -1;
            x = x << 16 | words[2 * at] | (uint32_t)words[2 * at + 1] << 8;
            at++;
        }
        symbols[i] = (uint8_t)s;
        states[lane] = x;
        lane = lane + 1 == num_lanes ? 0 : lane + 1;
    }
    return at;
}

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "codec._kernel", 0, -1, 0,
                                        0,                     0,               0, 0};
PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&definition); }

// How a vector becomes a row of a file, and a query the integers that rows are compared with.
#ifndef EI_ENCODE_H
#define EI_ENCODE_H

#include "edge_index.h"
#include "kernels.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ei {

constexpr float kSmallest = 1e-30f;  // a vector whose largest component is below this counts as zero
constexpr int kLargestCode = 1919;   // 256 * 7 + 127

inline size_t padded_dim(uint32_t dim) { return (size_t{dim} + 127) / 128 * 128; }

// How a space of vectors is turned into one that is rounded with little loss: by taking off the centre (models put most
// vectors into one corner of the space), and by a rotation (models have a few dimensions much larger than the others).
class Frame {
  public:
    Frame(uint32_t dim, ei_metric metric, const float *centre);

    uint32_t dim() const { return dim_; }
    size_t dims() const { return dims_; }  // padded
    ei_metric metric() const { return metric_; }
    const std::vector<float> &centre() const { return centre_; }

    // Whether a vector is finite, not too large, and for EI_COSINE not zero. What enters the frame must be.
    bool usable(const float *vector) const;
    // The vector itself, or for EI_COSINE at length 1, (dim,).
    void normalise(const float *vector, float *out) const;
    // Turn a vector into rotated, centred coordinates, (dims,).
    void enter_row(const float *vector, float *out) const;
    // The same for a query, which for EI_COSINE and EI_INNER_PRODUCT is not centred. *centre_product is what the centre adds
    // to its inner product with any row; *norm2 its squared length in the frame.
    void enter_query(const float *vector, float *out, double *centre_product, double *norm2) const;
    // Turn coordinates back into a vector, (dim,).
    void leave(float *coordinates, float *vector) const;

  private:
    void rotate(float *x) const;

    uint32_t dim_;
    size_t dims_, block_;
    ei_metric metric_;
    std::vector<float> centre_;
};

// Round coordinates to 12 bits: x_i is close to scale * (256 * (u_i - 8) + residual_i). Returns the scale.
float encode_row(const float *coordinates, size_t dims, uint8_t *codes, int8_t *residual);

// Squared length of a row as it is stored.
double stored_norm2(const uint8_t *codes, const int8_t *residual, size_t dims, float scale);

// Coordinates of a row as it is stored.
void decode_row(const uint8_t *codes, const int8_t *residual, size_t dims, float scale, float *coordinates);

// A stored row as a query of 8 bits, 16 times as coarse as it is stored.
void row_as_query(const uint8_t *codes, const int8_t *residual, size_t dims, int8_t *query, int32_t *sum);

// A query against codes (`coarse`) and against whole rows (`fine`).
struct Query {
    std::vector<int8_t> coarse, high, low;
    std::vector<int16_t> wide;
    int32_t coarse_sum;
    float coarse_scale;   // of a product with codes, after 8 * coarse_sum is taken off
    double fine_scale;
    double centre_product, norm2;

    explicit Query(size_t dims) : coarse(dims), high(dims), low(dims), wide(dims), coordinates_(dims) {}
    bool set(const Frame &frame, const float *vector);  // false: not a usable vector
    ei_query fine() const { return {wide.data(), high.data(), low.data(), wide_sum_}; }

  private:
    std::vector<float> coordinates_;
    int64_t wide_sum_ = 0;
};

}  // namespace ei
#endif

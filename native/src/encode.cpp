#include "encode.h"

#include <cfloat>
#include <cmath>
#include <cstring>

namespace ei {

namespace {

// Round to the nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits of the
// significand. Unlike lrintf() it becomes a plain vector loop, and gives the same bits everywhere.
int32_t round_to_int(float x)
{
    const float shifted = x + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4B400000;
}

float largest_magnitude(const float *values, size_t n)
{
    float peak = 0;
    for (size_t i = 0; i < n; i++) {
        const float magnitude = std::fabs(values[i]);
        peak = magnitude > peak ? magnitude : peak;
    }
    return peak;
}

double squared_length(const float *values, size_t n)
{
    double sums[4] = {0, 0, 0, 0};  // four, so that additions overlap
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        for (size_t j = 0; j < 4; j++) sums[j] += double{values[i + j]} * double{values[i + j]};
    }
    for (; i < n; i++) sums[0] += double{values[i]} * double{values[i]};
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The sign that coordinate i is multiplied by before it is mixed with the others of its block.
float sign_of(size_t i) { return (i + 1) * uint64_t{0x9E3779B97F4A7C15} >> 63 ? -1.0f : 1.0f; }


}  // namespace

Frame::Frame(uint32_t dim, ei_metric metric, const float *centre)
    : dim_(dim), dims_(padded_dim(dim)), block_(dims_ & (~dims_ + 1)), metric_(metric), centre_(dim)
{
    if (centre) centre_.assign(centre, centre + dim);
}

bool Frame::usable(const float *vector) const
{
    const double norm2 = squared_length(vector, dim_);  // not a number if one of them is none
    return norm2 <= double{FLT_MAX} / 16 && (metric_ != EI_COSINE || largest_magnitude(vector, dim_) >= kSmallest);
}

void Frame::normalise(const float *vector, float *out) const
{
    const double factor = metric_ == EI_COSINE ? 1 / std::sqrt(squared_length(vector, dim_)) : 1;
    for (uint32_t i = 0; i < dim_; i++) out[i] = static_cast<float>(vector[i] * factor);
}

void Frame::enter_row(const float *vector, float *out) const
{
    normalise(vector, out);
    for (uint32_t i = 0; i < dim_; i++) out[i] -= centre_[i];
    std::memset(out + dim_, 0, (dims_ - dim_) * sizeof *out);
    rotate(out);
}

void Frame::enter_query(const float *vector, float *out, double *centre_product, double *norm2) const
{
    normalise(vector, out);
    *centre_product = 0;
    for (uint32_t i = 0; i < dim_; i++) {
        if (metric_ == EI_L2) {
            out[i] -= centre_[i];
        } else {
            *centre_product += double{out[i]} * double{centre_[i]};
        }
    }
    *norm2 = squared_length(out, dim_);
    std::memset(out + dim_, 0, (dims_ - dim_) * sizeof *out);
    rotate(out);
}

void Frame::leave(float *x, float *vector) const
{
    // The rotation is signs, then a symmetric matrix; both are their own inverse.
    for (size_t i = 0; i < dims_; i++) x[i] *= sign_of(i);
    rotate(x);
    for (uint32_t i = 0; i < dim_; i++) vector[i] = x[i] * sign_of(i) + centre_[i];
    if (metric_ != EI_COSINE) return;
    const double norm2 = squared_length(vector, dim_);
    const double factor = norm2 > 0 ? 1 / std::sqrt(norm2) : 0;
    for (uint32_t i = 0; i < dim_; i++) vector[i] = static_cast<float>(vector[i] * factor);
}

// Signs, then a Walsh-Hadamard transform of each block: an orthogonal matrix that takes 7 additions per coordinate of 384.
void Frame::rotate(float *x) const
{
    const float factor = static_cast<float>(1 / std::sqrt(static_cast<double>(block_)));
    for (size_t i = 0; i < dims_; i++) x[i] *= sign_of(i) * factor;
    for (float *block = x; block != x + dims_; block += block_) {
        for (size_t i = 0; i < block_; i += 4) {  // the steps of 1 and 2 at once
            const float a = block[i] + block[i + 1], b = block[i] - block[i + 1];
            const float c = block[i + 2] + block[i + 3], d = block[i + 2] - block[i + 3];
            block[i] = a + c, block[i + 1] = b + d, block[i + 2] = a - c, block[i + 3] = b - d;
        }
        for (size_t step = 4; step < block_; step *= 2) {
            for (size_t i = 0; i < block_; i += 2 * step) {
                for (size_t j = i; j < i + step; j++) {
                    const float a = block[j], b = block[j + step];
                    block[j] = a + b, block[j + step] = a - b;
                }
            }
        }
    }
}

float encode_row(const float *coordinates, size_t dims, uint8_t *codes, int8_t *residual)
{
    const float peak = largest_magnitude(coordinates, dims);
    const float factor = peak >= kSmallest ? static_cast<float>(kLargestCode) / peak : 0;
    for (size_t chunk = 0; chunk < dims; chunk += 128) {
        uint8_t high[128];
        for (size_t i = 0; i < 128; i++) {
            const int32_t code = round_to_int(coordinates[chunk + i] * factor);
            const int32_t top = (code + 128) >> 8;
            high[i] = static_cast<uint8_t>(top + 8);
            residual[chunk + i] = static_cast<int8_t>(code - 256 * top);
        }
        for (size_t i = 0; i < 64; i++) codes[chunk / 2 + i] = static_cast<uint8_t>(high[i] | high[64 + i] << 4);
    }
    return (peak >= kSmallest ? peak : kSmallest) / static_cast<float>(kLargestCode);
}

namespace {

// Call use(i, code of 12 bits) for every dimension.
template <class Use>
void each_code(const uint8_t *codes, const int8_t *residual, size_t dims, const Use &use)
{
    for (size_t chunk = 0; chunk < dims; chunk += 128) {
        const uint8_t *bytes = codes + chunk / 2;
        const int8_t *low = residual + chunk;
        for (size_t i = 0; i < 64; i++) use(chunk + i, 256 * ((bytes[i] & 15) - 8) + low[i]);
        for (size_t i = 0; i < 64; i++) use(chunk + 64 + i, 256 * ((bytes[i] >> 4) - 8) + low[64 + i]);
    }
}

}  // namespace

double stored_norm2(const uint8_t *codes, const int8_t *residual, size_t dims, float scale)
{
    int64_t sum = 0;
    each_code(codes, residual, dims, [&](size_t, int32_t code) { sum += code * code; });
    return static_cast<double>(sum) * double{scale} * double{scale};
}

void decode_row(const uint8_t *codes, const int8_t *residual, size_t dims, float scale, float *coordinates)
{
    each_code(codes, residual, dims, [&](size_t i, int32_t code) { coordinates[i] = static_cast<float>(code) * scale; });
}

void row_as_query(const uint8_t *codes, const int8_t *residual, size_t dims, int8_t *query, int32_t *sum)
{
    // 16 * (u - 8) + (residual + 8) / 16 rounded down, in bytes that wrap: then a vector of the processor holds 16 of them.
    const auto nearest = [](uint8_t u, int8_t low) {
        const auto raised = static_cast<uint8_t>(low ^ 0x80);  // by 128
        return static_cast<uint8_t>((u << 4) + (((raised >> 1) + 4) >> 3) - 8);
    };
    int32_t total = 0;
    for (size_t chunk = 0; chunk < dims; chunk += 128) {
        const uint8_t *bytes = codes + chunk / 2;
        const int8_t *low = residual + chunk;
        uint8_t raised[128];  // what is wanted, and 128 more
        for (size_t i = 0; i < 64; i++) raised[i] = nearest(bytes[i] & 15, low[i]);
        for (size_t i = 0; i < 64; i++) raised[64 + i] = nearest(bytes[i] >> 4, low[64 + i]);
        for (size_t i = 0; i < 128; i++) total += raised[i];
        for (size_t i = 0; i < 128; i++) query[chunk + i] = static_cast<int8_t>(raised[i] ^ 0x80);
    }
    *sum = total - 128 * static_cast<int32_t>(dims);
}

bool Query::set(const Frame &frame, const float *vector)
{
    float *x = coordinates_.data();
    if (!frame.usable(vector)) return false;
    frame.enter_query(vector, x, &centre_product, &norm2);
    const size_t dims = frame.dims();
    const float peak = largest_magnitude(x, dims);
    const bool zero = peak < kSmallest;
    const float to_coarse = zero ? 0 : 127.0f / peak;
    const float to_wide = zero ? 0 : 32639.0f / peak;  // 256 * 127 + 127: the largest of which both bytes are signed
    int32_t sum = 0;
    int64_t wide_sum = 0;
    for (size_t i = 0; i < dims; i++) {
        const int32_t c = round_to_int(x[i] * to_coarse);
        coarse[i] = static_cast<int8_t>(c);
        sum += c;
    }
    for (size_t i = 0; i < dims; i++) {
        const int32_t w = round_to_int(x[i] * to_wide);
        const int32_t h = (w + 128) >> 8;  // rounds, so that what is left fits a signed byte
        wide[i] = static_cast<int16_t>(w);
        high[i] = static_cast<int8_t>(h);
        low[i] = static_cast<int8_t>(w - 256 * h);
        wide_sum += w;
    }
    coarse_sum = sum;
    wide_sum_ = wide_sum;
    coarse_scale = peak / 127.0f * 256.0f;
    fine_scale = double{peak} / 32639;
    return true;
}

}  // namespace ei

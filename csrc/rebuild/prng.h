// wlib::prng_expand and its gradient (schemas: registration.cpp).
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <vector>

#include "torch/text.h"
#include "wlib/params/prng.h"

namespace wlib::rebuild {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor prng_expand(const Tensor& coef, std::vector<int64_t> shape, int64_t seed, Text distribution,
                   int64_t tensor_id, std::optional<ScalarType> out_dtype);
Tensor prng_project(const Tensor& values, int64_t count, int64_t seed, Text distribution,
                    int64_t tensor_id);

void prng_expand_cpu(const PrngParams& p);
void prng_project_cpu(const PrngParams& p);

}  // namespace wlib::rebuild

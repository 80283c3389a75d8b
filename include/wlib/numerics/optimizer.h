// One step of an optimiser on one element, written with fused and correctly rounded operations
// only, so that every device gives the same bits.
#pragma once

#include <cmath>

#include "wlib/platform.h"

namespace wlib {

enum class UpdateRule : int { kNone, kAdamW, kLion };

// Factors of a step, computed in float64.
template <class T>
struct UpdateFactors {
  T decay;  // 1 - learning rate * weight decay
  T beta1, beta2;
  T rest1, rest2;        // 1 - beta
  T step;                // AdamW: learning rate / (1 - beta1^t); Lion: learning rate
  T inverse_correction;  // AdamW: 1 / sqrt(1 - beta2^t)
  T eps;
  template <class U>
  UpdateFactors<U> as() const {
    return {U(decay), U(beta1), U(beta2), U(rest1), U(rest2), U(step), U(inverse_correction),
            U(eps)};
  }
};

// Parameter and moments of an element.
template <class T>
struct UpdateState {
  T parameter, first, second;
};

// AdamW (Loshchilov and Hutter, ICLR 2019), in the order of torch.optim.AdamW:
//   p = decay p;  m += (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2
//   p -= step m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
template <class T>
WLIB_HOST_DEVICE void adamw_step(const UpdateFactors<T>& f, T gradient, UpdateState<T>& s) {
  s.first = std::fma(f.rest1, gradient - s.first, s.first);
  s.second = std::fma(f.rest2 * gradient, gradient, f.beta2 * s.second);
  const T denominator = std::fma(std::sqrt(s.second), f.inverse_correction, f.eps);
  s.parameter = std::fma(-f.step, s.first / denominator, f.decay * s.parameter);
}

// Lion (Chen et al., arXiv 2302.06675):
//   p = decay p - step sign(beta1 m + (1 - beta1) g);  m = beta2 m + (1 - beta2) g
template <class T>
WLIB_HOST_DEVICE void lion_step(const UpdateFactors<T>& f, T gradient, UpdateState<T>& s) {
  const T direction = std::fma(f.rest1, gradient, f.beta1 * s.first);
  // NaN stays NaN.
  const T sign = direction > 0 ? T(1) : direction < 0 ? T(-1) : direction;
  s.parameter = std::fma(-f.step, sign, f.decay * s.parameter);
  s.first = std::fma(f.rest2, gradient, f.beta2 * s.first);
}

template <class T>
WLIB_HOST_DEVICE void update_step(UpdateRule rule, const UpdateFactors<T>& f, T gradient,
                                  UpdateState<T>& s) {
  if (rule == UpdateRule::kAdamW)
    adamw_step(f, gradient, s);
  else
    lion_step(f, gradient, s);
}

}  // namespace wlib

// The scale maps of fastflow/ops/scale_map.py, but the one with a gain.
#pragma once

#include <cmath>

#include "host_device.h"

namespace fastflow::residual_coupling {

// As in KINDS there.
enum Kind { exponential = 1, sigmoid, softplus, tanh, clamp_atan, clamp_tanh, clamp_sigmoid, soft_clip, inverse_sigmoid };

struct ScaleMap {
  int kind;
  float bias, eps, clamp;
  bool shift_first;
};

struct Scale {
  float c, log_c, slope;  // slope = d log_c / ds
};

FASTFLOW_HOST_DEVICE inline Scale scale_of(const ScaleMap& map, float s) {
  if (map.kind == sigmoid || map.kind == softplus || map.kind == inverse_sigmoid) {
    const float a = s + map.bias, e = std::exp(-std::fabs(a));
    const float larger = 1 / (1 + e), smaller = e * larger;
    const float own = a >= 0 ? larger : smaller, rest = a >= 0 ? smaller : larger;
    if (map.kind == inverse_sigmoid) return {1 / own, std::log1p(e) - std::fmin(a, 0.0f), -rest};
    const float c = (map.kind == sigmoid ? own : std::fmax(a, 0.0f) + std::log1p(e)) + map.eps;
    // A sigmoid underflows where its logarithm does not.
    if (map.eps == 0) return {c, std::fmin(a, 0.0f) - std::log1p(e), rest};
    return {c, std::log(c), own * (map.kind == sigmoid ? rest : 1.0f) / c};
  }
  float log_c = s, slope = 1;
  if (map.kind == clamp_atan) {
    const float limit = map.clamp * 0.636f;
    log_c = limit * std::atan(s), slope = limit / (1 + s * s);
  } else if (map.kind == soft_clip) {
    const float growth = 1 + std::fabs(s) / map.clamp;
    log_c = s / growth, slope = 1 / (growth * growth);
  } else if (map.kind != exponential) {
    const float inner = map.kind == clamp_sigmoid ? 0.5f : 1.0f, limit = map.kind == tanh ? 1.0f : map.clamp;
    const float bent = std::tanh(inner * s);
    log_c = limit * bent, slope = inner * limit * (1 - bent * bent);
  }
  return {std::exp(log_c), log_c, slope};
}

}  // namespace fastflow::residual_coupling

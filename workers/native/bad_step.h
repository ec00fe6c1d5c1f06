// Thrown when the arguments of a call break its contract; the C interface makes a status of it.
#pragma once

namespace stafette {

struct BadStep {
  const char* what;
};

}  // namespace stafette
